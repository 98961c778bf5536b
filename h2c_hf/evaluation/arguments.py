"""The fields of an evaluation, as in an evaluation.yaml. Without torch: `h2c evaluate --help` lists them."""

from dataclasses import asdict, dataclass

from ..command_line import TEMPLATE_HELP, HfArg
from ..pair_fields import Quantization
from ..reports.page import CONTROLS, ONLY_IN_SETS, TITLES
from ..wording import (
    ANSWER_INSTRUCTION,
    CHOICE_INSTRUCTION,
    HINT_INSTRUCTION,
    HINT_PREFIX,
    REASONING_INSTRUCTION,
    Prompts,
)


METHODS = tuple(TITLES)  # the names in `methods.METHODS`, whose import needs torch
NEED_WEIGHTS = ("adapter", "lora")  # methods with a field of the same name, which is their folder


@dataclass
class EvaluationArguments:
    """The bridge, the questions, the methods, and further measurements."""

    model: str | None = HfArg(default=None, help="the bridge: a folder, a Hub id, or 'atlas'")
    revision: str | None = HfArg(default=None, help="commit of the bridge's repo")
    sharer: str | None = HfArg(
        default=None, help="a Sharer instead of the one that the bridge's config names"
    )
    receiver: str | None = HfArg(
        default=None, help="a Receiver instead of the one that the bridge's config names"
    )
    sharer_gguf_file: str | None = HfArg(
        default=None, help="GGUF file in the folder or repo that sharer names"
    )
    receiver_gguf_file: str | None = HfArg(
        default=None, help="GGUF file in the folder or repo that receiver names"
    )
    sharer_chat_template: str | None = HfArg(
        default=None, help="Jinja file, or 'plain', instead of the Sharer's own template"
    )
    receiver_chat_template: str | None = HfArg(
        default=None, help="Jinja file, 'plain' or 'spaced', instead of the Receiver's own template"
    )
    adapter: str | None = HfArg(
        default=None, help="the adapter control: a bridge from 'h2c train --blank_sharer true', or 'atlas'"
    )
    lora: str | None = HfArg(default=None, help="the adapter of the method 'lora', from 'h2c lora'")
    sharer_quantization: Quantization = HfArg(
        default="none", help="load the Sharer in 4 or 8 bits (bitsandbytes)"
    )
    dtype: str = HfArg(
        default="auto",
        help="dtype of all three models: 'auto' is that of their weights; float32 where a CPU would emulate "
        "bfloat16",
    )
    attn_implementation: str | None = HfArg(default=None, help="attention of Sharer and Receiver")
    chat_template_kwargs: dict | str | None = HfArg(default=None, help=TEMPLATE_HELP)

    methods: list[str] = HfArg(
        default_factory=lambda: [name for name in METHODS if name not in (*NEED_WEIGHTS, *ONLY_IN_SETS)],
        help=f"who answers: {', '.join(METHODS)}",
    )
    data: str = HfArg(
        default="atlas", help="multiple choice: 'atlas', a dataset in the columns of cais/mmlu, or 'none'"
    )
    data_name: str | None = HfArg(default=None, help="configuration of the dataset")
    split: str = HfArg(default="test", help="split that is asked")
    shots: int = HfArg(
        default=0, help="few-shot turns: the first questions of the same subject in shots_split"
    )
    shots_split: str = HfArg(default="dev", help="split of the few-shot turns")
    forms: list[str] = HfArg(
        default_factory=lambda: ["choice"],
        help="'choice' (a letter), and 'open' (in words, without the choices)",
    )
    limit: int | None = HfArg(default=None, help="so many questions, spread over all")
    batch_size: int = HfArg(
        default=64, help="questions a batch; the shuffled control trades states inside a batch"
    )
    max_length: int | None = HfArg(
        default=None, help="longest prompt, tokens of either model, if less than its context window"
    )

    sets: list[str] = HfArg(
        default_factory=list,
        help="questions in words, each set with a name and a regime: fields of QuestionSet "
        "('name=...,regime=private,path=...,limit=...')",
    )
    hand_off: str | None = HfArg(
        default=None,
        help="passages for the Sharer alone: 'atlas', 'atlas_invented', or a dataset in the layout of SQuAD",
    )
    hand_off_name: str | None = HfArg(default=None, help="configuration of that dataset")
    hand_off_split: str = HfArg(default="test", help="its split")
    hand_off_limit: int | None = HfArg(default=None, help="so many of its questions, spread over all")
    hand_off_facts: int = HfArg(default=4, help="facts a passage of 'atlas' and 'atlas_invented'")
    perplexity_data: str | None = HfArg(
        default=None, help="conversations whose last turn is scored, as OpenHermes or messages"
    )
    perplexity_name: str | None = HfArg(default=None, help="configuration of that dataset")
    perplexity_split: str = HfArg(default="train", help="its split")
    perplexity_limit: int = HfArg(default=200, help="so many of its conversations, spread over all")
    perplexity_batch_size: int = HfArg(default=8, help="conversations a batch")

    timed_questions: int = HfArg(
        default=30, help="questions that are timed, one at a time, with every method; 0 times nothing"
    )
    output_lengths: list[int] = HfArg(
        default_factory=lambda: [1, 16, 64], help="output lengths, tokens, that are timed"
    )
    examples: int = HfArg(default=3, help="questions shown with every method's answers")

    choice_instruction: str = HfArg(default=CHOICE_INSTRUCTION, help="after the choices")
    hint_instruction: str = HfArg(default=HINT_INSTRUCTION, help="what text_to_text asks the Sharer")
    answer_instruction: str = HfArg(
        default=ANSWER_INSTRUCTION, help="what text_to_text_answer asks the Sharer"
    )
    reasoning_instruction: str = HfArg(
        default=REASONING_INSTRUCTION, help="what text_to_text_reasoning asks the Sharer"
    )
    hint_prefix: str = HfArg(default=HINT_PREFIX, help="before the Sharer's words in the Receiver's prompt")

    seed: int = HfArg(default=0, help="of everything random")
    output_dir: str | None = HfArg(
        default=None, help="folder of the report; finished batches there are not asked again"
    )

    @property
    def prompts(self) -> Prompts:
        return Prompts(
            self.choice_instruction,
            self.hint_instruction,
            self.answer_instruction,
            self.reasoning_instruction,
            self.hint_prefix,
        )

    def to_dict(self) -> dict:
        """Return all fields that change the results."""
        return {name: value for name, value in asdict(self).items() if name != "output_dir"}


def parse(arguments: list[str] | None, prog: str = "h2c evaluate") -> EvaluationArguments:
    """Arguments from `CONFIG.yaml --field value`.

    Raises:
        ValueError: for a field that there is not, or values that cannot be.
    """
    from ..config_parser import ConfigParser, read_template_kwargs
    from .sets import QuestionSet

    (options,) = ConfigParser(
        EvaluationArguments, "evaluation.yaml", prog=prog, allow_abbrev=False
    ).parse_config(arguments)
    options.sets = [QuestionSet.parse(entry) for entry in options.sets]
    options.chat_template_kwargs = read_template_kwargs(options.chat_template_kwargs)
    check(options)
    return options


def check(options: EvaluationArguments) -> None:
    for name in ("model", "output_dir"):
        if not getattr(options, name):
            raise ValueError(f"{name} is missing; expected it in the yaml file or as --{name} VALUE.")
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"There is no method {unknown[0]!r}; expected one of {', '.join(METHODS)}.")
    missing = [name for name in ("receiver", "h2c", "sharer") if name not in options.methods]
    if missing or not set(CONTROLS) & set(options.methods):
        what = missing[0] if missing else f"a control ({', '.join(CONTROLS)})"
        raise ValueError(
            f"methods lacks {what}; a report compares receiver, h2c and sharer, and h2c with a control."
        )
    for name in NEED_WEIGHTS:
        if (name in options.methods) != bool(getattr(options, name)):
            raise ValueError(
                f"The method {name!r} and the field {name} (a folder of weights) go together; expected both "
                "or neither."
            )
    names = [one.name for one in options.sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two sets are called {twice[0]!r}; expected a name of its own for each.")
    if taken := sorted(set(names) & {"choice", "open", "hand_off", "perplexity"}):
        raise ValueError(
            f"A set is called {taken[0]!r}, which is a part of every report; expected another name."
        )
    if options.data == "none" and not options.sets:
        raise ValueError("data is 'none' and there are no sets; expected either.")
    if set(options.forms) - {"choice", "open"} or "choice" not in options.forms:
        raise ValueError(f"forms is {options.forms}; expected ['choice'] or ['choice', 'open'].")
    for name, least in (
        ("shots", 0), ("batch_size", 2), ("perplexity_limit", 1), ("perplexity_batch_size", 2),
        ("timed_questions", 0), ("examples", 0), ("limit", 2), ("hand_off_limit", 2), ("hand_off_facts", 1),
        ("max_length", 2),
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}.")
    if any(length < 1 for length in options.output_lengths):
        raise ValueError(f"output_lengths is {options.output_lengths}; expected lengths of at least 1 token.")

"""`h2c evaluate CONFIG.yaml` and `accelerate launch scripts/evaluate.py CONFIG.yaml`: methods, controls,
intervals, latency, a report."""

import copy
import json
import shlex
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed
from transformers.utils import cached_file

from ..configs import ADAPTER, HUB_CONFIGS
from ..data.rows import spread_rows
from ..errors import naming
from ..hints import install, next_commands
from ..loading import ROLES, load_pair
from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..modeling.base_models_h2c import record_commit
from ..prompts import LETTERS, open_answer
from ..reports.page import ONLY_IN_SETS, TITLES, interval, percent
from ..reports.report import build_report, save_report
from ..reports.statistics import accuracy_row
from .arguments import EvaluationArguments, parse
from .batch import Batch, own_draft_tokens
from .donors import donor_row
from .hand_off import hand_off_questions, hand_off_rows
from .inspection import inspect
from .latency import time_methods
from .methods import METHODS
from .perplexity import load_exchanges, perplexity
from .progress import Progress
from .questions import fit, limits, load_questions
from .runner import MAX_ANSWER_TOKENS, evaluate
from .sets import QuestionSet, set_report


def main(arguments: list[str] | None = None) -> int:
    """Parse, ask, time, write. Returns the exit status."""
    options = parse(arguments)
    # Else processes without a GPU would not find each other.
    state = PartialState(cpu=not torch.cuda.is_available())
    output = Path(options.output_dir)
    # Before the work: a path that cannot be written to is refused here.
    output.mkdir(parents=True, exist_ok=True)
    run = Run(options, state)
    report, items = run.report()
    if state.is_main_process:
        written = save_report(report, output, items)
        print_summary(report)
        print("\nWrote:", *written, sep="\n  ")
        folder = shlex.quote(options.output_dir)
        push = (
            []
            if options.model == "atlas"
            else [f"h2c push {shlex.quote(options.model)} USER/NAME --report {folder}/report.json --dry_run"]
        )
        next_commands(f"h2c plot {folder}", *push)
    return 0


class Run:
    """The state that the stages share. The data is read, and its errors are told, before models load."""

    def __init__(self, options: EvaluationArguments, state: PartialState):
        set_seed(options.seed)
        self.options = options
        with state.main_process_first():
            self.questions = self.passages = self.exchanges = None
            if options.data != "none":
                self.questions = load_questions(
                    options.data, options.data_name, options.split, options.shots, options.shots_split
                )
                self.questions = [
                    self.questions[row] for row in spread_rows(len(self.questions), options.limit)
                ]
            for one in options.sets:
                # Told now, if it cannot be; the texts of some sets are cut by the Receiver's tokenizer later.
                one.load()
            if options.hand_off:
                name, split, limit = options.hand_off_name, options.hand_off_split, options.hand_off_limit
                self.passages = hand_off_questions(
                    options.hand_off, name, split, limit, options.hand_off_facts
                )
            if options.perplexity_data:
                name = options.perplexity_name
                split = options.perplexity_split
                limit = options.perplexity_limit
                self.exchanges, self.unusable = load_exchanges(options.perplexity_data, name, split, limit)
        self.model, self.processor, self.adapter = load(options, state.device)
        self.lora = load_lora(options.lora, self.model.receiver) if options.lora else None
        self.progress = Progress(options.output_dir, state)
        self.state = state
        self.is_main = state.is_main_process
        self.shared = {"adapter": self.adapter, "prompts": options.prompts, "lora": self.lora}
        self.counts, self.items = {}, {}

    def report(self) -> tuple[dict, dict]:
        """The report, and its items as `save_report` takes them."""
        options, more = self.options, {}
        if self.questions:
            headline, form = self.ask("choice", self.questions, "choice"), "choice"
            asked = self.items["choice"][0]
        if "open" in options.forms and self.questions:
            more["open_form"] = {
                name: accuracy_row(result["correct"])
                for name, result in self.ask("open", self.questions, "open").items()
            }
        for one in options.sets:
            answers = self.ask_set(one)
            more.setdefault("sets", {})[one.name] = set_report(
                one,
                self.items[one.name][0],
                answers,
                self.processor.receiver_tokenizer,
                options.examples,
                self.processor.chat_template_kwargs,
            )
        if not self.questions:
            (asked, headline), form = self.items[options.sets[0].name], "open"
            methods = list(headline)
        else:
            methods = self.in_choice
        if self.passages:
            answers = self.ask("hand_off", self.passages, "open", self.options.methods)
            more["hand_off"] = hand_off_rows(answers, self.items["hand_off"][0])
        if self.exchanges:
            longest = limits(self.model, [], "choice", options.max_length)
            more["perplexity"], self.counts["perplexity"] = perplexity(
                self.model, self.processor, self.exchanges, options.methods, longest,
                options.perplexity_batch_size, progress=self.progress, adapter=self.adapter,
                prompts=options.prompts,
            )  # fmt: skip
            self.counts["perplexity"]["unusable"] = self.unusable
        if not self.is_main:
            return {}, {}
        timing = {"latency": {}}
        if options.timed_questions:
            timed = [asked[row] for row in spread_rows(len(asked), options.timed_questions)]
            timing = time_methods(
                self.model, self.processor, timed, methods, options.output_lengths, form=form, **self.shared
            )
        if form == "choice":  # a look into one question, by its letters
            rows = spread_rows(len(asked), options.examples)
            more["examples"] = [
                side_by_side(self.model, self.processor, asked, row, headline, **self.shared) for row in rows
            ]
            more |= inspect(self.model, self.processor, asked, len(asked) // 2, methods, **self.shared)
        report = build_report(
            headline, timing.pop("latency"), asked, **more, **timing,
            counts=self.counts,
            **gates(self.model),
            **training(options, self.model),
            models=models(options, self.model),
            config=options.to_dict(),
        )  # fmt: skip
        return report, self.items

    @property
    def in_choice(self) -> list[str]:
        """The methods that answer questions without passages."""
        return [name for name in self.options.methods if name not in ONLY_IN_SETS]

    def ask_set(self, one: QuestionSet) -> dict[str, dict]:
        with self.state.main_process_first():
            questions, counts = one.load(
                self.processor.receiver_tokenizer, self.processor.chat_template_kwargs
            )
        if one.draft_tokens is None:
            one.draft_tokens = own_draft_tokens(self.model)
        answers = self.ask(
            one.name,
            questions,
            "open",
            one.methods(self.options.methods),
            one.answer_tokens,
            one.draft_tokens,
        )
        self.counts[one.name] |= counts
        return answers

    def ask(
        self,
        stage: str,
        questions: list[dict],
        form: str,
        methods: list[str] | None = None,
        answer_tokens: int = MAX_ANSWER_TOKENS,
        draft_tokens: int | None = None,
    ) -> dict[str, dict]:
        options, methods = self.options, self.in_choice if methods is None else methods
        draft_tokens = own_draft_tokens(self.model) if draft_tokens is None else draft_tokens
        longest = limits(self.model, methods, form, options.max_length, answer_tokens, draft_tokens)
        asked, counts = fit(
            questions, self.processor, longest, form, options.prompts, skyline="skyline" in methods
        )
        if len(asked) < 2:
            raise ValueError(
                f"{counts['refused']} of {len(questions)} questions ({stage}) are longer than {longest}; "
                "expected at least 2 to fit."
            )
        results = evaluate(
            self.model, self.processor, asked, methods, form, options.batch_size,
            progress=self.progress, answer_tokens=answer_tokens, draft_tokens=draft_tokens, **self.shared,
        )  # fmt: skip
        counts["cut_sharer_texts"] = {
            name: result["cut_texts"] for name, result in results.items() if result["cut_texts"]
        }
        self.counts[stage], self.items[stage] = counts, (asked, results)
        return results


def load(
    options: EvaluationArguments, device: torch.device
) -> tuple[H2CForCausalLM, H2CProcessor, H2CBridgeModel | None]:
    attention = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    named = {
        f"{role}{name}": getattr(options, f"{role}{name}")
        for role in ROLES
        for name in ("", "_gguf_file", "_chat_template")
    }
    model, processor = load_pair(
        options.model, options.revision, sharer_quantization=options.sharer_quantization, dtype=options.dtype,
        chat_template_kwargs=options.chat_template_kwargs, device_map={"": device}, **named, **attention,
    )  # fmt: skip
    adapter = None
    if options.adapter:
        source = HUB_CONFIGS / ADAPTER if options.adapter == "atlas" else options.adapter
        with naming("adapter", options.adapter):
            adapter = (
                H2CBridgeModel.from_pretrained(source, dtype=model.bridge.dtype)
                .to(model.bridge.device)
                .eval()
            )
        adapter.config.check_pair(model.sharer.config, model.receiver.config)
    return model, processor, adapter


def load_lora(folder: str, receiver: PreTrainedModel) -> PreTrainedModel:
    """A copy of the Receiver with a LoRA adapter, so that the Receiver itself stays as it is.

    Raises:
        ValueError: without peft, or for a folder without an adapter.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ValueError(
            f"The method 'lora' needs peft, which is not installed; install it with: {install('lora')}"
        ) from None
    return PeftModel.from_pretrained(copy.deepcopy(receiver), folder).eval()


def models(options: EvaluationArguments, model: H2CForCausalLM) -> dict[str, dict]:
    """Return the three models' ids, and their commits if known."""
    found = {
        "bridge": {
            "id": options.model,
            "revision": record_commit(model.bridge.config, options.revision)._commit_hash,
        }
    }
    for role in ("sharer", "receiver"):
        config = getattr(model, role).config
        name = getattr(options, role) or getattr(model.config, f"{role}_model_id") or config._name_or_path
        found[role] = {"id": name, "revision": getattr(config, "_commit_hash", None)}
    return found


def gates(model: H2CForCausalLM) -> dict:
    """{"gates": ...}; nothing for a bridge of the message form, which has none."""
    return {} if model.bridge.message is not None else {"gates": model.gate_values()}


def training(options: EvaluationArguments, model: H2CForCausalLM) -> dict:
    """Return {"training": ...} if the bridge's repo holds the `log_history.json` that `h2c train` wrote."""
    path = cached_file(
        HUB_CONFIGS / "atlas" if options.model == "atlas" else options.model, "log_history.json",
        revision=options.revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if path is None:
        return {}
    history = json.loads(Path(path).read_text(encoding="utf-8"))
    return {"training": {"bridge_parameters": model.bridge.num_parameters(), "history": history}}


def side_by_side(
    model: H2CForCausalLM, processor: H2CProcessor, questions: list[dict], row: int, results: dict, **shared
) -> dict:
    """One question with every method's answer, by letter and in words.

    Args:
        results: the output of `evaluate` for `questions` in choice form.
        shared: `adapter` and `prompts` of `Batch`.
    """
    question = questions[row]
    donor = Batch(model, processor, [questions[donor_row(questions, row)]], "open", **shared)
    batch = Batch(model, processor, [question], "open", donor, **shared)
    answers = {}
    for name, result in results.items():
        letter = result["predictions"][row]
        text = METHODS[name].generate(batch, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)[0].strip()
        answers[name] = {"choice": f"{LETTERS[letter]}. {question['choices'][letter]}", "open": text}
    return {
        "question": question["question"],
        "choices": question["choices"],
        "expected": open_answer(question),
        "answers": answers,
    }


def print_summary(report: dict) -> None:
    print(f"\n{'method':<26} {'accuracy':>9} {'95 % interval':>18} {'first token':>14}")
    for name, row in report["methods"].items():
        bounds = f"{percent(row['accuracy_low'])} - {percent(row['accuracy_high'])}"
        time = f"{row['ttft_ms_median']:.1f} ms" if "ttft_ms_median" in row else "-"
        print(f"{TITLES[name]:<26} {percent(row['accuracy']):>9} {bounds:>18} {time:>14}")
    gain = report["information_gain"]
    print(f"\nrecovered         {interval(report['recovered'])}")
    print(f"information gain  {interval(gain)}, McNemar p = {gain['p']:.1g}")
    for name, row in report.get("open_form", {}).items():
        print(f"in words: {TITLES[name]:<26} {percent(row['accuracy'])}")
    for set_name, one in report.get("sets", {}).items():
        print(
            f"\n{set_name} ({one['regime']}, {one['n']} questions): {'exact':>24} {'contained':>10} {'F1':>8}"
        )
        for name, row in one["methods"].items():
            print(
                f"  {TITLES[name]:<26} {percent(row['accuracy']):>9} {percent(row['contained']):>10} "
                f"{percent(row['f1']):>8}"
            )

"""The pair as a model of EleutherAI's lm-evaluation-harness, one `method` or control a run: `--model h2c`.

lm-eval hands a model strings. Here two models with chat templates of their own read them, so
`apply_chat_template` returns the conversation, marked, and each model renders it; see `lm_eval_prompts`.
Tokens of answers are those that follow each model's generation prompt. lm-eval finds the name "h2c" once this
module is imported; `h2c lm-eval` does that.
"""

import copy
import difflib
import inspect
import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedModel
from transformers.cache_utils import Cache

from ..config_parser import read_template_kwargs
from ..loading import load_pair
from ..modeling import H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..modeling.configuration_h2c import HUB_ARGUMENTS
from ..modeling.processing_h2c import left_pad, padding_id
from ..prompts import PROMPTS, set_template_kwargs
from ..reports.page import ONLY_IN_SETS
from . import lm_eval_prompts as prompts
from .batch import Batch
from .lm_eval_prompts import Context
from .lm_eval_scoring import continuations, prompt_cache
from .methods import H2C, METHODS, TextToText, sharer_text


logger = logging.getLogger(__name__)
PREFIXES = {"receiver": "", "sharer": "sharer_"}  # of the names of each model's inputs
# Methods that a task can ask: it has no passages for the Sharer only, no adapter of the Receiver, no drafts.
ASKED = tuple(name for name in METHODS if name not in (*ONLY_IN_SETS, "lora"))
AUTO_BATCH_SIZE = 64  # what "auto" begins with, as in lm-eval's own models
# Further arguments of `load_pair` that `--model_args` may give.
LOADING = (
    *inspect.signature(load_pair).parameters, "dtype", "subfolder", "attn_implementation",
    "sharer_quantization_config", "strict_revisions", "sharer_kwargs", "receiver_kwargs", *HUB_ARGUMENTS,
)  # fmt: skip


@register_model("h2c")
class H2CLM(LM):
    """lm-eval's `LM` itself, and not `HFLM`: what differs is the reading of prompts and the model's call,
    which is nearly all of it.

    - A prompt longer than a window loses its oldest content, never its frame; how many did is warned of, and
      counted in the results' config.
    - An empty context is the answering model's begin (or end) token, for the Receiver twice: one to bridge,
      and the kickstart.
    - `loglikelihood_rolling` scores text in the answering model's tokens. Each window after the first goes on
      from half a window of the text before it, which the Sharer reads too.
    - `shuffled` gives a context the states of the context before it, whatever the batch. `noise` depends on
      the batch.
    - lm-eval's response cache (`--use_cache`) does not know the model or the method: one path for each.
    """

    def __init__(
        self,
        pretrained: str | tuple[H2CForCausalLM, H2CProcessor] | None = None,
        method: str = "h2c",
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        adapter: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict | str | None = None,
        chat_template_kwargs: dict | str | None = None,
        parallelize: bool = False,
        **loading,
    ):
        """
        Args:
            pretrained: the bridge's repo or folder, or a model and its processor.
            method: a name in `h2c_hf.evaluation.methods.METHODS`.
            batch_size: contexts a batch; "auto" begins with `max_batch_size` and halves it whenever memory
                runs out.
            max_batch_size: the first size that "auto" tries, by default 64.
            device: of both models; by default the GPU, or the CPU if there is none.
            trust_remote_code: for the two base models.
            adapter: the bridge's folder of the adapter control (`h2c train ... --blank_sharer true`).
            max_length: longest prompt and answer, tokens of either model, if less than its context window.
            add_bos_token: begin plain text with the begin token, or not; by default as each tokenizer does.
            enable_thinking, chat_template_args: lm-eval's names for variables of the chat templates; see
                `chat_template_kwargs`.
            chat_template_kwargs: variables of the two chat templates, over those of the bridge's processor.
            parallelize: spread both models over all GPUs (`device_map="auto"`).
            loading: more arguments of `load_pair` (`sharer`, `receiver`, `sharer_chat_template`, `dtype`,
                `revision` ...).

        Raises:
            ValueError: for an argument or a method that there is not, or a value that cannot be.
        """
        super().__init__()
        for name in loading:
            if name not in LOADING or name in ("bridge", "loading"):
                near = difflib.get_close_matches(name, [*inspect.signature(H2CLM).parameters, *LOADING], n=1)
                raise ValueError(
                    f"There is no model argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
                )
        if pretrained is None:
            raise ValueError(
                "pretrained is missing; expected --model_args pretrained=BRIDGE, a folder or a Hub id."
            )
        known = list(ASKED)
        if method not in known:
            raise ValueError(f"There is no method {method!r}; expected one of {', '.join(known)}.")
        # "auto:N" asks other models to measure N times.
        self.auto_batch_size = str(batch_size).partition(":")[0] == "auto"
        if self.auto_batch_size:
            batch_size = max_batch_size or AUTO_BATCH_SIZE
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"batch_size is {batch_size!r}; expected a whole number of contexts, at least 1, or 'auto'."
            )
        if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
            raise ValueError(f"max_length is {max_length!r}; expected a whole number of tokens, at least 2.")
        self.method, self.answers, self.batch_size = method, METHODS[method], int(batch_size)
        if parallelize and not isinstance(pretrained, str):
            raise ValueError(
                "parallelize=True is for models that are loaded here; got loaded ones, expected their repo "
                "or folder."
            )
        if isinstance(pretrained, str):
            device = device or "cuda"
            # lm-eval's command says "cuda:0" where nobody named one.
            if device.startswith("cuda") and not torch.cuda.is_available():
                device = "cpu"
            device_map = "auto" if parallelize else device
            pretrained = load_pair(
                pretrained, device_map=device_map, trust_remote_code=trust_remote_code, **loading
            )
        self.model, self.processor = pretrained[0].eval(), copy.copy(pretrained[1])
        set_template_kwargs(self.processor, read_template_kwargs(chat_template_args))
        set_template_kwargs(self.processor, read_template_kwargs(chat_template_kwargs))
        if enable_thinking is not None:
            set_template_kwargs(self.processor, {"enable_thinking": enable_thinking})
        self._device = self.model.device
        if (method == "adapter") != bool(adapter):
            raise ValueError(
                f"The method 'adapter' and adapter=DIR go together; got method={method}, adapter={adapter}."
            )
        bridge = self.model.bridge
        self.adapter = (
            H2CBridgeModel.from_pretrained(adapter, dtype=bridge.dtype).to(bridge.device).eval()
            if adapter
            else None
        )
        self.tokenizers = {role: getattr(self.processor, f"{role}_tokenizer") for role in PREFIXES}
        # Who reads a prompt; the one that answers first.
        if self.answers.reader == "sharer":
            self.roles = ["sharer"]
        else:
            self.roles = ["receiver", "sharer"] if isinstance(self.answers, H2C) else ["receiver"]
        self.tokenizer = self.tokenizers[self.roles[0]]
        self.shortened = dict.fromkeys(PREFIXES, 0)
        self.max_length, self.add_bos_token, self.warned_of_text = max_length, add_bos_token, False

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "H2CLM":
        """As stock. `--model_args` go before the command's options, which have defaults (`batch_size`)."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**given, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "H2CLM":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # What lm-eval asks of a model that knows chat templates

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        return prompts.pack(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Both templates, for the results' fingerprint."""
        if isinstance(chat_template, str):
            raise ValueError(
                f"Got the chat template {chat_template!r}; expected --apply_chat_template alone: each model "
                "has its own."
            )
        return json.dumps({role: tokenizer.chat_template for role, tokenizer in self.tokenizers.items()})

    @property
    def tokenizer_name(self) -> str:
        """lm-eval keeps built requests by this name. Ours hold conversations, not yet tokenized."""
        return "h2c-conversation"

    def get_model_info(self) -> dict:
        return {
            "method": self.method,
            "shortened_prompts": self.shortened,
            "chat_template_kwargs": self.processor.chat_template_kwargs,
        }

    # The three kinds of request

    @torch.inference_mode()
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether greedy decoding writes it), by request."""
        self._warn_of_text(requests)
        asked: dict[str, list[tuple[int, list[int]]]] = {}  # context: its (request, continuation's tokens)
        for row, request in enumerate(requests):
            context, continuation = prompts.split(*request.args[:2])
            ids = prompts.continuation_ids(
                self.tokenizer, context, continuation, self.processor.chat_template_kwargs
            )
            asked.setdefault(context, []).append((row, ids))
        contexts = [Context(text, room=max(len(ids) for _, ids in rows) - 1) for text, rows in asked.items()]
        targets = [[ids for _, ids in rows] for rows in asked.values()]
        results: list[tuple[float, bool]] = [None] * len(requests)
        for index, scores in self._score(contexts, targets, "loglikelihood", disable_tqdm):
            for (row, _), score in zip(asked[contexts[index].text], scores, strict=True):
                results[row] = score
                self.cache_hook.add_partial("loglikelihood", requests[row].args, score)
        return results

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, every token predicted once."""
        contexts, targets, owners = [], [], []
        for row, request in enumerate(requests):
            for context, target in self._windows(request.args[0]):
                contexts.append(context)
                targets.append([target])
                owners.append(row)
        totals = [0.0] * len(requests)
        for index, [(score, _)] in self._score(contexts, targets, "loglikelihood_rolling", disable_tqdm):
            totals[owners[index]] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text up to the first stop sequence, by request."""
        self._warn_of_text(requests)
        kinds: dict[str, list[int]] = {}  # requests that generate alike
        for row, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(row)
        results = [""] * len(requests)
        with tqdm(
            total=len(requests), desc=f"generate_until ({self.method})", unit="request", disable=disable_tqdm
        ) as bar:
            for rows in kinds.values():
                kwargs = normalize_gen_kwargs(requests[rows[0]].args[1])
                until = handle_stop_sequences(kwargs.pop("until", None), eos=None)
                room = kwargs.pop("max_gen_toks")
                if not kwargs["do_sample"]:
                    kwargs.pop("temperature", None)  # 0 is how lm-eval says greedy
                contexts = [Context(requests[row].args[0], room) for row in rows]
                for indices, texts in self._batches(
                    contexts, partial(self._generate, until=until, max_new_tokens=room, **kwargs)
                ):
                    for index, text in zip(indices, texts, strict=True):
                        results[rows[index]] = text
                        self.cache_hook.add_partial("generate_until", requests[rows[index]].args, text)
                    bar.update(len(indices))
        self._warn_of_shortened()
        return results

    def _generate(self, indices: list[int], batch: Batch, until: list[str], **kwargs) -> list[str]:
        # The batch holds the hints.
        method = METHODS["receiver"] if isinstance(self.answers, TextToText) else self.answers
        stop = {"stop_strings": until, "tokenizer": self.tokenizer} if until else {}
        return [
            postprocess_generated_text(text, until, None) for text in method.generate(batch, **stop, **kwargs)
        ]

    def _windows(self, text: str):
        """The (context, tokens) pairs into which a text is cut."""
        window = self._window(self.roles[0]) - 1  # an empty context takes one token more for the Receiver
        if isinstance(self.answers, TextToText):
            window -= 2 * self.answers.max_tokens  # the hint, and what it becomes in the Receiver's tokens
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = self._prefix_id(self.roles[0])
        windows = get_rolling_token_windows(ids, prefix, max_seq_len=window, context_len=window // 2)
        for number, pair in enumerate(windows):
            context, target = make_disjoint_window(pair)
            yield Context(self.tokenizer.decode(context) if number else "", len(target) - 1, context), target

    # Batches

    def _score(self, contexts: list[Context], targets: list[list[list[int]]], what: str, disable_tqdm: bool):
        """Yield (index of the context, [(log-likelihood, greedy) of each of its targets])."""
        with tqdm(
            total=sum(map(len, targets)), desc=f"{what} ({self.method})", unit="request", disable=disable_tqdm
        ) as bar:
            for indices, scores in self._batches(contexts, partial(self._score_batch, targets=targets)):
                scored = iter(scores)
                for index in indices:
                    bar.update(len(targets[index]))
                    yield index, list(itertools.islice(scored, len(targets[index])))
        self._warn_of_shortened()

    def _score_batch(
        self, indices: list[int], batch: Batch, targets: list[list[list[int]]]
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of all targets of a batch of contexts."""
        rows = [(row, target) for row, index in enumerate(indices) for target in targets[index]]
        cache, scores = self._cache(batch), []
        for start in range(0, len(rows), self.batch_size):
            scores += continuations(*self._answering(batch), cache, rows[start : start + self.batch_size])
        return scores

    def _batches(self, contexts: list[Context], answer: Callable[[list[int], Batch], list]):
        """Yield (indices, answer(indices, batch)): contexts of like length together, the longest first
        (memory runs out at once, or never). With `batch_size` "auto" a batch that does not fit into memory is
        tried again with half of its contexts."""
        order, start = sorted(range(len(contexts)), key=lambda index: -len(contexts[index].text)), 0
        while start < len(order):
            indices, shortened = order[start : start + self.batch_size], dict(self.shortened)
            try:
                answers = answer(indices, self._batch_of(contexts, indices))
            except Exception as error:
                if not self.auto_batch_size or len(indices) == 1 or not should_reduce_batch_size(error):
                    raise
                self.batch_size = len(indices) // 2
                self.shortened.update(shortened)
                logger.warning(
                    "Out of memory with %d contexts a batch; going on with %d.", len(indices), self.batch_size
                )
            else:
                yield indices, answers
                start += len(indices)
                continue
            clear_device_cache()  # after the except clause, which holds on to the tensors of the traceback

    def _batch_of(self, contexts: list[Context], indices: list[int]) -> Batch:
        """Some contexts as the method reads them: with the Sharer's hints or another context's states."""
        batch = [contexts[index] for index in indices]
        if isinstance(self.answers, TextToText):
            batch = self._hinted(batch)
        donor = None
        if self.method == "shuffled" and len(contexts) > 1:
            donor = self._batch([Context(contexts[index - 1].text, room=0) for index in indices], ["sharer"])
        return self._batch(batch, self.roles, donor)

    def _batch(self, contexts: list[Context], roles: list[str], donor: Batch | None = None) -> Batch:
        """The contexts as `roles` read them; the first one answers, and leaves their room."""
        batch = Batch(self.model, self.processor, contexts, donor=donor, adapter=self.adapter)
        inputs = {}
        for role in roles:
            rows = [self._encode(role, context, answers=role == roles[0]) for context in contexts]
            prefix = PREFIXES[role]
            inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"] = left_pad(
                rows, padding_id(self.tokenizers[role])
            )
        batch.inputs = BatchFeature(inputs).to(self.model.device)
        return batch

    def _encode(self, role: str, context: Context, answers: bool) -> list[int]:
        """The context as one model reads it, in its window."""
        if answers and context.ids is not None:
            ids = context.ids
        else:
            limit = self._window(role) - (context.room if answers else 0)
            options = {
                "template_kwargs": self.processor.chat_template_kwargs,
                "add_bos_token": self.add_bos_token,
            }
            ids, cut = prompts.newest(self.tokenizers[role], context.text, limit, **options)
            self.shortened[role] += cut
        least = 2 if role == "receiver" else 1
        return [self._prefix_id(role)] * (least - len(ids)) + ids

    def _hinted(self, contexts: list[Context]) -> list[Context]:
        """The contexts with the Sharer's text on each; an empty one has nothing to explain."""
        asking = [context for context in contexts if context.text]
        if not asking:
            return contexts
        instruction, longest = getattr(PROMPTS, self.answers.variant), self.answers.max_tokens
        asked = self._batch(
            [Context(prompts.hint_request(context.text, instruction), longest) for context in asking],
            ["sharer"],
        )
        hints = iter(sharer_text(asked, asked.inputs, max_new_tokens=longest, do_sample=False))
        return [
            replace(context, text=prompts.with_hint(context.text, next(hints)), ids=None)
            if context.text
            else context
            for context in contexts
        ]

    def _window(self, role: str) -> int:
        config = getattr(self.model, role).config.get_text_config(decoder=True)
        window = getattr(config, "max_position_embeddings", None) or self.tokenizers[role].model_max_length
        return min(window, self.max_length or window)

    def _prefix_id(self, role: str) -> int:
        tokenizer = self.tokenizers[role]
        return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def _warn_of_text(self, requests: list[Instance]) -> None:
        """Say so, once, if models with chat templates are asked in plain text."""
        templates = any(tokenizer.chat_template for tokenizer in self.tokenizers.values())
        plain = any(request.args[0] and prompts.unpack(request.args[0]) is None for request in requests)
        if templates and plain and not self.warned_of_text:
            self.warned_of_text = True
            logger.warning(
                "The prompts are plain text, though the models have chat templates: without "
                "--apply_chat_template the bridge reads prompts unlike those that it was trained on, and "
                "scores far below its accuracy."
            )

    def _warn_of_shortened(self) -> None:
        if any(self.shortened.values()):
            logger.warning(
                "Prompts longer than a context window, whose oldest content was left out, so far: %s",
                self.shortened,
            )

    # The models' calls

    def _answering(self, batch: Batch) -> tuple[PreTrainedModel, torch.Tensor, torch.Tensor]:
        role = self.roles[0]
        return getattr(self.model, role), *(
            batch.inputs[f"{PREFIXES[role]}{name}"] for name in ("input_ids", "attention_mask")
        )

    def _cache(self, batch: Batch) -> Cache:
        """The answering model's cache of all but the last token of its prompts."""
        if self.answers.reader == "receiver":
            return METHODS["receiver" if isinstance(self.answers, TextToText) else self.method].cache(batch)
        return prompt_cache(*self._answering(batch))

"""Sharer + bridge + Receiver as one causal language model: `forward()` for training and scoring, `generate()` for text.

What both do, through one code path (`bridged_cache`): the Sharer reads its prompt; the Receiver prefills its own but for
the last token, the *kickstart*; the bridge rewrites that cache. Then the stock Receiver goes on from the kickstart.
"""

import contextlib
import copy
import os
from collections.abc import Callable

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .bridges_h2c import BridgesMixin
from .configuration_h2c import HUB_ARGUMENTS, H2CBridgeConfig, text_values
from .conversation_h2c import H2CConversation
from .drafts_h2c import Draft, write_draft
from .families_h2c import backbone, check_joined, recomputing
from .generation_h2c import (
    cache_implementation,
    check_rope,
    continuing_from_cache,
    copies_of_each,
    into_static,
    keep_compiled,
    new_tokens,
    one_position_first,
    own_defaults,
    setting,
)
from .inputs_h2c import (
    CACHE,
    check_dimensions,
    check_prompt,
    check_tensors,
    execution_device,
    forked,
    model_inputs,
    one_cache,
    target_start,
    to_fill,
)
from .loading_h2c import base_arguments, check_adapters, device_map_of, load, without_wrapper
from .loss_h2c import loss_without_logits
from .message_h2c import message_length, message_mask, with_message
from .modeling_h2c_bridge import H2CBridgeModel
from .passes_h2c import PASS_TOKENS, beside, in_groups, join, passes_by_length, read_through
from .prefixes_h2c import H2CPrefixCache
from .stock_h2c import StockMixin, by_role, check_arguments, second_position


class H2CForCausalLM(StockMixin, BridgesMixin, PreTrainedModel, GenerationMixin):
    """A frozen Sharer, a trainable bridge and a frozen Receiver.

    Make one with `from_pair` (two models, a new bridge) or `from_pretrained` (a trained bridge). `save_pretrained` and
    `push_to_hub` write the bridge alone. Other bridges for the pair come in with `load_bridge` and `set_bridge`, and
    `disable_bridge` leaves the Receiver alone.
    """

    config: H2CBridgeConfig
    config_class = H2CBridgeConfig
    base_model_prefix = "bridge"
    main_input_name = "input_ids"
    _no_split_modules = []
    _supports_sdpa = True

    def __init__(
        self,
        config: H2CBridgeConfig,
        sharer: PreTrainedModel | PreTrainedConfig | None = None,
        receiver: PreTrainedModel | None = None,
        bridge: H2CBridgeModel | None = None,
    ):
        if sharer is None or receiver is None:
            raise ValueError(
                "H2CForCausalLM holds two language models and needs their weights: use H2CForCausalLM.from_pair(sharer, receiver) "
                "for a new bridge or H2CForCausalLM.from_pretrained(repo) for a trained one."
            )
        without_sharer = isinstance(sharer, PreTrainedConfig)
        config.check_pair(sharer if without_sharer else sharer.config, receiver.config)
        super().__init__(config)
        for name, value in text_values(receiver.config).items():  # older configs do not say
            setattr(config, name, value)
        self._init_bridges()
        # The bridge first: `model.device` is then the Receiver's, where inputs go, and not the Sharer's.
        self.bridge = (bridge if bridge is not None else H2CBridgeModel(config)).to(execution_device(receiver))
        self.sharer, self.receiver = None if without_sharer else sharer, receiver
        for frozen in self._frozen():
            frozen.requires_grad_(False)
        self.post_init()
        # The bridge's own, which would else name parts of base models too ("gate" is in "gate_proj").
        own = self.bridge._keep_in_fp32_modules_strict
        self._keep_in_fp32_modules_strict = (self._keep_in_fp32_modules_strict - own) | {f"bridge.{name}" for name in own}
        self.generation_config = own_defaults(receiver.generation_config)
        if places := device_map_of(self._base_models(), self.bridge):
            self.hf_device_map = places  # the Trainer then leaves each part where it is
        # Exact names, as `save_pretrained` and the Trainer expect them: checkpoints then hold the bridge alone.
        self._keys_to_ignore_on_save = {key for key in self.state_dict() if not key.startswith("bridge.")}
        self.train(self.bridge.training)

    # Making one

    @classmethod
    def from_pair(
        cls,
        sharer: PreTrainedModel | PreTrainedConfig | str,
        receiver: PreTrainedModel | str,
        bridge: H2CBridgeModel | None = None,
        strict_revisions: bool = False,
        **overrides,
    ) -> "H2CForCausalLM":
        """Join two models (or Hub ids, or folders), with a new bridge where none is given.

        Args:
            sharer, receiver: decoder-only language models of transformers. An id is loaded in the dtype of its weights. The Sharer's
                config stands for a Sharer that is not in memory: every call then needs `sharer_hidden_states`.
            bridge: a bridge for this pair.
            strict_revisions: refuse, rather than warn of, another revision of a model than `bridge` was trained on.
            overrides: fields of `H2CBridgeConfig` for the new bridge.

        Raises:
            ValueError: where `bridge` was made for other shapes, or one of the models cannot be joined by any.
        """
        if bridge is not None and overrides:
            raise ValueError(f"Got a bridge, which has its config, and fields for a new one's: {', '.join(overrides)}; expected either.")
        models = []
        for role, model in (("sharer", sharer), ("receiver", receiver)):
            if isinstance(model, str | os.PathLike):
                gguf_file = overrides.get(f"{role}_gguf_file")
                model = load(model, dtype="auto", **({"gguf_file": gguf_file} if gguf_file else {}))
            models.append(without_wrapper(model))
        configs = [model if isinstance(model, PreTrainedConfig) else model.config for model in models]
        config = bridge.config if bridge is not None else H2CBridgeConfig.from_pair(*configs, **overrides)
        for role, base in zip(("sharer", "receiver"), configs, strict=True):
            config.check_revision(role, getattr(base, "_commit_hash", None), strict_revisions)
        model = cls(config, *models, bridge)
        check_adapters(model._base_models(), config, saving=False)
        check_joined(model)
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        sharer: PreTrainedModel | str | None = None,
        receiver: PreTrainedModel | str | None = None,
        sharer_quantization_config=None,
        sharer_kwargs: dict | None = None,
        receiver_kwargs: dict | None = None,
        device_map=None,
        strict_revisions: bool = False,
        **kwargs,
    ) -> "H2CForCausalLM":
        """Load a trained bridge and the two models that its config names.

        Args:
            pretrained_model_name_or_path: the bridge's repo or folder.
            sharer, receiver: models, ids or folders to use instead of those that the config names.
            sharer_quantization_config: for the Sharer alone, for example `BitsAndBytesConfig(load_in_4bit=True)`.
            sharer_kwargs, receiver_kwargs: more arguments of `from_pretrained` for either model (dtype, attn_implementation ...).
            device_map: for the two models; the bridge goes where the Receiver is.
            strict_revisions: refuse, rather than warn of, another revision of a base model than the bridge was trained on.
            kwargs: as for any model. `dtype` is for all three; by default each keeps the dtype of its weights. A base model that is
                given as an object keeps its own.

        Raises:
            ValueError: for arguments to load a base model with that is loaded already, and what `from_pair` refuses.
        """
        for role, given, own in (("sharer", sharer, sharer_kwargs or sharer_quantization_config), ("receiver", receiver, receiver_kwargs)):
            if own and isinstance(given, PreTrainedModel):
                raise ValueError(f"Got a {role} that is loaded already, and arguments to load it with; expected either.")
        if device_map is not None and isinstance(sharer, PreTrainedModel) and isinstance(receiver, PreTrainedModel):
            raise ValueError(
                f"device_map is {device_map!r}, and both base models are loaded already; expected None: they stay where they are."
            )
        if kwargs.get("attn_implementation") is None:
            kwargs["attn_implementation"] = getattr(kwargs.get("config"), "_asked_attention", None)
        attn_implementation = kwargs["attn_implementation"]  # of models that are loaded here, `base_arguments` takes care
        arguments = base_arguments(kwargs, device_map, sharer_quantization_config, sharer_kwargs, receiver_kwargs)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        repo = {"revision": kwargs.get("revision"), "subfolder": kwargs.get("subfolder", ""), **hub}
        generation_config = kwargs.pop("generation_config", None)
        with_info = kwargs.pop("output_loading_info", False)
        bridge, info = H2CBridgeModel.from_pretrained(pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs)
        models = []
        for role, given in (("sharer", sharer), ("receiver", receiver)):
            if given is None:
                given, arguments[role] = bridge.config.locate(role, pretrained_model_name_or_path, repo, arguments[role])
            models.append(load(given, **arguments[role]) if isinstance(given, str | os.PathLike) else given)
        model = cls.from_pair(*models, bridge, strict_revisions=strict_revisions)
        for role, given in (("sharer", sharer), ("receiver", receiver)):
            if isinstance(given, PreTrainedModel):
                model.set_attn_implementation({role: by_role(attn_implementation)[role]})
        if isinstance(attn_implementation, str):
            model.config._attn_implementation = attn_implementation
        if pretrained_model_name_or_path is not None:  # else the weights are a state dict
            with contextlib.suppress(OSError):  # the repo need not have one; the Receiver's serves then
                model.generation_config = own_defaults(GenerationConfig.from_pretrained(pretrained_model_name_or_path, **repo))
        if generation_config is not None:
            model.generation_config = copy.deepcopy(generation_config)
        return (model, info) if with_info else model

    def init_weights(self):
        """Nothing to do: each of the three models comes with its weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The bridge's: `save_pretrained` writes it into the config, for the weights that it saves."""
        return self.bridge.dtype

    # Frozen models

    def train(self, mode: bool = True):
        """Only the bridge has a training mode: the frozen models would otherwise drop out, and drop their caches."""
        super().train(mode)
        for frozen in self._frozen():
            frozen.eval()
        return self

    def _base_models(self) -> dict[str, PreTrainedModel | None]:
        return {"sharer": self.sharer, "receiver": self.receiver}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write the bridge alone; base models that lie in its own repo are copied along.

        Raises:
            ValueError: if a base model has adapters that the config does not name.
        """
        check_adapters(self._base_models(), self.config, saving=True)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _frozen(self) -> list[PreTrainedModel]:
        return [model for model in (self.sharer, self.receiver) if model is not None]

    def gate_values(self) -> dict[str, list[float | None]]:
        """See `H2CBridgeModel.gate_values`."""
        return self.bridge.gate_values()

    # The three steps to a bridged cache

    @torch.compiler.disable  # frozen passes are run as they are: each family would be compiled in its own way
    @torch.no_grad()
    def read(
        self,
        sharer_input_ids: torch.Tensor,
        sharer_attention_mask: torch.Tensor | None = None,
        layers: list[int] | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """The Sharer's hidden states, (batch, sharer length, sharer_hidden_size) each. No LM head.

        Args:
            layers: which of the S + 1 states to keep, by default all; the others are None.
            cache: the Sharer's, of what stands before `sharer_input_ids`; these are added to it, and `sharer_attention_mask` is then of
                both. None: no cache.

        Raises:
            ValueError: where the model was made with the Sharer's config alone.
        """
        passes = self._passes(sharer_input_ids, sharer_attention_mask if cache is None else None)
        read = [None] * (self.config.sharer_num_hidden_layers + 1)
        layers = list(range(len(read))) if layers is None else sorted(layers)
        if len(passes) == 1:
            self._read(sharer_input_ids, sharer_attention_mask, layers, read.__setitem__, cache)
            return tuple(read)
        # Rows of like lengths at a time, each without the padding that longer ones would bring; then padded as they came.
        for rows, length in passes:

            def keep(index: int, state: torch.Tensor, rows: list[int] = rows, length: int = length) -> None:
                if read[index] is None:
                    read[index] = state.new_zeros(*sharer_input_ids.shape, state.shape[-1])
                read[index][rows, -length:] = state

            self._read(sharer_input_ids[rows, -length:], sharer_attention_mask[rows, -length:], layers, keep)
        return tuple(read)

    def _passes(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[tuple[list[int], int]]:
        """Which rows the Sharer reads together."""
        if self.sharer is None:
            raise ValueError("This model was made without the Sharer's weights: expected sharer_hidden_states, got sharer_input_ids.")
        if attention_mask is None or torch.compiler.is_compiling():
            return [(list(range(len(input_ids))), input_ids.shape[1])]
        return passes_by_length(attention_mask, PASS_TOKENS.get(execution_device(self.sharer).type, PASS_TOKENS["cuda"]))

    def _read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, layers: list[int], take: Callable, cache: Cache | None = None
    ) -> None:
        """`read` in one pass, which hands each state of `layers` to `take`."""
        evaluating(self.sharer)
        if attention_mask is not None and not torch.compiler.is_compiling() and attention_mask.all():
            attention_mask = None
        inputs = model_inputs(self.sharer, input_ids, attention_mask, past=0 if cache is None else cache.get_seq_length())
        read_through(self.sharer, {**inputs, CACHE: cache, "use_cache": cache is not None}, layers, take)

    @torch.compiler.disable
    @torch.no_grad()
    def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: Cache | None = None) -> Cache:
        """The Receiver's own cache of all `input_ids` but the last, the kickstart; or `cache`, of what stands before them, with these
        added: `attention_mask` is then of both."""
        evaluating(self.receiver)
        cache = DynamicCache(config=self.receiver.config) if cache is None else cache
        mask = None if attention_mask is None else attention_mask[:, :-1]
        inputs = model_inputs(self.receiver, input_ids[:, :-1], mask, past=cache.get_seq_length())
        return backbone(self.receiver)(**inputs, **{CACHE: cache}, use_cache=True)[CACHE]

    def draft(
        self,
        sharer_input_ids: torch.Tensor,
        sharer_attention_mask: torch.Tensor | None = None,
        sharer_max_new_tokens: int = 8,
        **kwargs,
    ) -> Draft:
        """Let the Sharer write a draft, which the bridge reads after the prompt. `_asdict()` without `lengths` gives inputs of `forward`.

        Args:
            sharer_input_ids, sharer_attention_mask: (batch, sharer length), the Sharer's prompt, left-padded.
            sharer_max_new_tokens: the most tokens of a draft.
            kwargs: of the Sharer's `generate` (do_sample, temperature, eos_token_id ...); greedy by default.

        Raises:
            ValueError: see `write_draft`; and for fewer than 1 token, or a model without the Sharer's weights.
        """
        if not isinstance(sharer_max_new_tokens, int) or sharer_max_new_tokens < 1:
            raise ValueError(f"sharer_max_new_tokens is {sharer_max_new_tokens!r}; expected a number of tokens, at least 1.")
        self._passes(sharer_input_ids, None)  # refuses a model without a Sharer
        evaluating(self.sharer)
        return write_draft(self.sharer, sharer_input_ids, sharer_attention_mask, sharer_max_new_tokens, **kwargs)

    def bridged_cache(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharer_input_ids: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        sharer_hidden_states: tuple[torch.Tensor, ...] | None = None,
        receiver_cache: Cache | None = None,
    ) -> Cache:
        """Return the cache from which the Receiver answers.

        It holds the N - 1 positions of an N-token prompt, rewritten, or after the T positions of a message (`message_h2c`), as the bridge's
        form is. It is empty if the bridge is disabled: the Receiver then reads the prompt itself, as it does alone.

        Args:
            input_ids, attention_mask: (batch, N), the Receiver's prompt, left-padded.
            sharer_input_ids, sharer_attention_mask: (batch, sharer length), the Sharer's prompt, left-padded.
            sharer_hidden_states: what `read` returns, instead of `sharer_input_ids`.
            receiver_cache: what `prefill` returns for the same prompt, where that is at hand; or an empty cache, which is filled.

        Raises:
            ValueError: for inputs that are missing, empty, right-padded or longer than a context window.
        """
        if self._bridge_disabled:
            check_prompt("", input_ids, attention_mask, self.receiver, least=1)
            return DynamicCache(config=self.receiver.config)
        if sharer_hidden_states is None:
            if sharer_input_ids is None:
                raise ValueError(
                    "sharer_input_ids is missing: got None, expected the Sharer's prompt (batch, length). "
                    "H2CProcessor makes the inputs of both models from one conversation; pipeline(model=MODEL, processor=PROCESSOR) needs "
                    "pipeline_class=H2CTextGenerationPipeline."
                )
            if self.sharer is not None:
                check_prompt("sharer_", sharer_input_ids, sharer_attention_mask, self.sharer, least=1)
        read = sharer_input_ids if sharer_hidden_states is None else sharer_hidden_states[self.bridge.read_layers[0]]
        self.check_receiver_prompt(input_ids, attention_mask, sharer_attention_mask, read.shape[1])
        sharer_batch = len(read)
        if sharer_batch != len(input_ids):
            raise ValueError(f"The Sharer got {sharer_batch} prompts and the Receiver {len(input_ids)}; expected as many.")

        in_place = to_fill(receiver_cache)
        with beside(execution_device(self.receiver)) as prefill_stream:  # first: the Sharer's pass is the longer one
            if in_place:
                receiver_cache = self.prefill(input_ids, attention_mask, receiver_cache)
        receiver_mask = None if attention_mask is None else attention_mask[:, :-1]
        # Where nothing is trained, and all rows are read together, the hidden states need not be kept.
        if sharer_hidden_states is None and not torch.is_grad_enabled() and len(self._passes(sharer_input_ids, sharer_attention_mask)) == 1:
            cache = receiver_cache if in_place else forked(receiver_cache)
            self._bridge_while_reading(sharer_input_ids, sharer_attention_mask, cache, receiver_mask, prefill_stream)
            return cache
        if sharer_hidden_states is None:
            sharer_hidden_states = self.read(sharer_input_ids, sharer_attention_mask, self.bridge.read_layers)
        join(prefill_stream, receiver_cache)
        return self.bridge(sharer_hidden_states, receiver_cache, sharer_attention_mask, receiver_mask, in_place=in_place)

    def check_receiver_prompt(self, input_ids, attention_mask, sharer_attention_mask, sharer_length: int) -> None:
        """Refuse a Receiver prompt that cannot be bridged; see `check_prompt`. A message needs room in the Receiver's context window."""
        message_mask = None
        if self.config.bridge_form == "message":
            given = sharer_attention_mask is not None
            message_mask = sharer_attention_mask if given else torch.ones(len(input_ids), sharer_length, dtype=torch.long)
        check_prompt("", input_ids, attention_mask, self.receiver, least=2, bridged=True, message_mask=message_mask)

    @torch.compiler.disable
    def _bridge_while_reading(self, sharer_input_ids, sharer_attention_mask, cache: Cache, receiver_attention_mask, prefill_stream) -> None:
        """Rewrite `cache`, each group of layers as soon as the Sharer has come to what it reads."""
        bridge, depth = self.bridge, self.config.sharer_num_hidden_layers

        def rewrite(group: tuple[int, int], states: dict[int, torch.Tensor]) -> None:
            join(prefill_stream, cache)
            states = tuple(states.get(index) for index in range(depth + 1))
            bridge(states, cache, sharer_attention_mask, receiver_attention_mask, in_place=True, group=group)

        groups = bridge.groups(len(sharer_input_ids), max(cache.get_seq_length(), sharer_input_ids.shape[1]))
        self._read(sharer_input_ids, sharer_attention_mask, bridge.read_layers, in_groups(groups, rewrite))

    # Scoring and training

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sharer_input_ids: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        sharer_hidden_states: tuple[torch.Tensor, ...] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        skip_logits: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits from the kickstart on.

        Args:
            input_ids: (batch, N), the Receiver's prompt, left-padded; with `labels` the prompt and then the target,
                (batch, N + T), the target right-padded, so that each target follows its kickstart directly.
            attention_mask: as `input_ids`.
            sharer_input_ids, sharer_attention_mask, sharer_hidden_states: see `bridged_cache`.
            labels: (batch, N + T), -100 on the prompt and on padding. All targets begin in the same column.
            past_key_values: an empty cache, which is filled, or one that is bridged already; `input_ids` then holds the whole prompt or,
                with a longer `attention_mask`, what is new.
            num_items_in_batch: the number of targets over accumulated batches, from the Trainer.
            use_cache: False leaves the cache out of what is returned; there is one either way.
            cache: the newer name of `past_key_values`.
            skip_logits: with `labels`, compute the loss alone; the same loss, in much less memory. `logits` is None then.
            kwargs: passed to the Receiver.

        Returns:
            `logits` (batch, 1, vocabulary) of the token after the prompt; with `labels` (batch, T + 1, vocabulary), and `loss`.
        """
        check_arguments(input_ids, kwargs)
        check_tensors(input_ids=input_ids, attention_mask=attention_mask, sharer_input_ids=sharer_input_ids)
        past_key_values = one_cache(past_key_values, cache)
        for name in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, name, False):
                kwargs.setdefault(name, True)
        prompt, prompt_mask = input_ids, attention_mask
        if labels is not None:
            start = target_start(labels, input_ids)
            prompt, prompt_mask = input_ids[:, :start], None if attention_mask is None else attention_mask[:, :start]
        if past_key_values is None or (to_fill(past_key_values) and not self._bridge_disabled):
            sharer_inputs = sharer_input_ids, sharer_attention_mask, sharer_hidden_states
            past_key_values = self.bridged_cache(prompt, prompt_mask, *sharer_inputs, past_key_values)
        if not self._bridge_disabled:
            mask = torch.ones_like(prompt) if prompt_mask is None else prompt_mask
            check_rope(self.receiver, mask, input_ids.shape[1] - prompt.shape[1])
        cached = past_key_values.get_seq_length() - message_length(past_key_values)
        total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
        if cached >= total:
            raise ValueError(f"past_key_values holds {cached} positions and the prompt has {total}; expected at least one that is new.")
        new = input_ids[:, cached - total :] if input_ids.shape[1] == total and cached else input_ids

        inputs = model_inputs(self.receiver, new, attention_mask, past=cached)
        inputs["attention_mask"] = with_message(past_key_values, inputs["attention_mask"])
        evaluating(self.receiver)
        skip_logits = skip_logits and labels is not None
        receiver, recompute = self.receiver, self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if recompute:
            receiver = recomputing(receiver, *self._recomputation)
        receiver = backbone(receiver) if skip_logits else receiver
        outputs = receiver(**inputs, **{CACHE: past_key_values}, use_cache=True, **kwargs)
        logits, loss = None if skip_logits else outputs.logits, None
        if labels is not None:
            labels = labels[:, -new.shape[1] :]
            if skip_logits:
                loss = loss_without_logits(self.receiver, outputs.last_hidden_state, labels, num_items_in_batch)
            else:
                loss = self.loss_function(
                    logits=logits, labels=labels.to(logits.device), vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
                )
        if logits is not None and not cached:  # the bridge is disabled: the Receiver read the prompt here
            logits = logits[:, prompt.shape[1] - 1 :]
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions,
            **{CACHE: None if use_cache is False or recompute else outputs[CACHE]},
        )  # fmt: skip

    # Text

    def conversation(self) -> H2CConversation:
        """A conversation of several turns, which keeps what it has read."""
        return H2CConversation(self)

    def prefix_cache(self, max_bytes: int = 2**30) -> H2CPrefixCache:
        """Answers prompts that begin alike, and reads what they share once."""
        return H2CPrefixCache(self, max_bytes)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sharer_input_ids: torch.Tensor | None = None,
        sharer_attention_mask: torch.Tensor | None = None,
        sharer_hidden_states: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        generation_config: GenerationConfig | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """What the Receiver's own `generate` returns, started on the bridged cache; takes everything that it takes.

        Args:
            input_ids, attention_mask, sharer_input_ids, sharer_attention_mask, sharer_hidden_states: see `bridged_cache`.
            past_key_values: an empty cache, which is filled, or one that is bridged already, of all `input_ids` but the last.
            generation_config, kwargs: as for any model; `self.generation_config` serves where there is none. `cache_implementation`
                is "dynamic" or "static" (on a GPU, decoding is then compiled into CUDA graphs, as transformers does it).
            cache: the newer name of `past_key_values`.
            sharer_max_new_tokens: let the Sharer write so many tokens first, which the bridge reads after its prompt: see `draft`. A
                setting like others: `generation_config.sharer_max_new_tokens` serves where it is not given, and 0 is no draft.
        """
        past_key_values = one_cache(past_key_values, cache)
        attention_mask, generation_config = second_position(attention_mask, generation_config)
        if (tokenizer := kwargs.get("tokenizer")) is not None:  # `transformers serve` passes the processor, for stop strings
            kwargs["tokenizer"] = getattr(tokenizer, "tokenizer", tokenizer)
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        check_arguments(input_ids, kwargs)
        check_tensors(input_ids=input_ids, attention_mask=attention_mask, sharer_input_ids=sharer_input_ids)
        if kwargs.pop("use_cache", None) is False:
            raise ValueError("use_cache is False; expected True: what the bridge writes is the cache.")
        kwargs.pop("prefill_chunk_size", None)  # the prompt is prefilled here, at once
        configs = [copy.deepcopy(config) for config in (generation_config, self.generation_config) if config is not None]
        for config in configs:
            config.use_cache, config.prefill_chunk_size = True, None
        drafted = setting("sharer_max_new_tokens", kwargs, configs, 0)
        kwargs.pop("sharer_max_new_tokens", None)
        if drafted and not self._bridge_disabled:
            if sharer_input_ids is None or not to_fill(past_key_values) or sharer_hidden_states is not None:
                raise ValueError(
                    f"sharer_max_new_tokens is {drafted}, and the Sharer has read its prompt already; expected sharer_input_ids, or 0."
                )
            _, sharer_attention_mask, sharer_hidden_states, _ = self.draft(sharer_input_ids, sharer_attention_mask, drafted)
        device = execution_device(self.receiver)
        check_dimensions("input_ids", input_ids)
        input_ids = input_ids.to(device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
        if not self._bridge_disabled:
            check_rope(self.receiver, attention_mask, new_tokens(input_ids.shape[-1], kwargs, configs))
        implementation = cache_implementation(kwargs, configs) if past_key_values is None else None
        if past_key_values is None or (to_fill(past_key_values) and not self._bridge_disabled):
            sharer_inputs = sharer_input_ids, sharer_attention_mask, sharer_hidden_states
            past_key_values = self.bridged_cache(input_ids, attention_mask, *sharer_inputs, past_key_values)
        message = message_mask(past_key_values)
        if (copies := copies_of_each(kwargs, configs)) > 1:
            past_key_values.batch_repeat_interleave(copies)
            message = None if message is None else message.repeat_interleave(copies, 0)
        if implementation == "static":
            past_key_values = into_static(past_key_values, self.receiver, input_ids.shape[1], kwargs, configs)
        evaluating(self.receiver)
        receiver = continuing_from_cache(self.receiver, bridged=not self._bridge_disabled, message_mask=message)
        receiver.generation_config = configs[-1]
        outputs = receiver.generate(
            input_ids=input_ids, attention_mask=attention_mask, **{CACHE: past_key_values},
            generation_config=None if generation_config is None else configs[0], **kwargs,
        )  # fmt: skip
        keep_compiled(receiver, self.receiver)
        return outputs if self._bridge_disabled else one_position_first(outputs)


def evaluating(frozen: PreTrainedModel) -> None:
    """See that a frozen model does not train. (`eval` itself walks all modules, which takes as long as a layer of a small model.)"""
    if frozen.training:
        frozen.eval()


# `transformers serve` takes a model for one that writes text if its class is listed here.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(H2CBridgeConfig.model_type, H2CForCausalLM.__name__)

__all__ = ["H2CForCausalLM"]

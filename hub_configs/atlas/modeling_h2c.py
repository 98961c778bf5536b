"""Sharer + bridge + Receiver as one causal language model: `forward()` for training, `generate()` for text.

Both go through one code path, `bridged_cache`: the Sharer reads its prompt; the Receiver prefills its own but
for the last token, the *kickstart*; the bridge rewrites that cache. Then the stock Receiver goes on from the
kickstart.
"""

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .base_models_h2c import text_values
from .bridges_h2c import BridgesMixin
from .configuration_h2c import H2CBridgeConfig
from .conversation_h2c import H2CConversation
from .families_h2c import backbone, evaluating, freeze, recomputing
from .generation_h2c import GeneratingMixin, check_rope, own_defaults
from .inputs_h2c import CACHE, check_tensors, execution_device, model_inputs, one_cache, target_start, to_fill
from .loading_h2c import LoadingMixin, check_adapters, device_map_of
from .loss_h2c import loss_without_logits
from .message_h2c import message_length, with_message
from .modeling_h2c_bridge import H2CBridgeModel
from .prefixes_h2c import H2CPrefixCache
from .reading_h2c import ReadingMixin
from .stock_h2c import StockMixin, check_arguments


class H2CForCausalLM(
    LoadingMixin, ReadingMixin, GeneratingMixin, StockMixin, BridgesMixin, PreTrainedModel, GenerationMixin
):
    """A frozen Sharer, a trainable bridge and a frozen Receiver.

    Make one with `from_pair` (two models, a new bridge) or `from_pretrained` (a trained bridge).
    `save_pretrained` and `push_to_hub` write the bridge alone. Other bridges for the pair come in with
    `load_bridge` and `set_bridge`, and `disable_bridge` leaves the Receiver alone.
    """

    config: H2CBridgeConfig
    config_class = H2CBridgeConfig
    base_model_prefix = "bridge"
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []
    _keep_in_fp32_modules_strict: set[str]
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
                "H2CForCausalLM holds two language models and needs their weights: use "
                "H2CForCausalLM.from_pair(sharer, receiver) for a new bridge or "
                "H2CForCausalLM.from_pretrained(repo) for a trained one."
            )
        without_sharer = isinstance(sharer, PreTrainedConfig)
        config.check_pair(sharer if without_sharer else sharer.config, receiver.config)
        super().__init__(config)
        for name, value in text_values(receiver.config).items():  # older configs do not say
            setattr(config, name, value)
        self._init_bridges()
        # The bridge first: `model.device` is then the Receiver's, where inputs go, and not the Sharer's.
        self.bridge = (bridge if bridge is not None else H2CBridgeModel(config)).to(
            execution_device(receiver)
        )
        self.sharer, self.receiver = None if without_sharer else sharer, receiver
        for frozen in self._frozen():
            freeze(frozen)
        self.post_init()
        # The bridge's own, which would else name parts of base models too ("gate" is in "gate_proj").
        own = set(self.bridge._keep_in_fp32_modules_strict)
        self._keep_in_fp32_modules_strict = (self._keep_in_fp32_modules_strict - own) | {
            f"bridge.{name}" for name in own
        }
        self.generation_config = own_defaults(receiver.generation_config)
        if places := device_map_of(self._base_models(), self.bridge):
            self.hf_device_map = places  # the Trainer then leaves each part where it is
        # Exact names, as `save_pretrained` and the Trainer expect them: checkpoints then hold the bridge
        # alone.
        self._keys_to_ignore_on_save = {key for key in self.state_dict() if not key.startswith("bridge.")}
        self.train(self.bridge.training)

    def init_weights(self):
        """Nothing to do: each of the three models comes with its weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The bridge's: `save_pretrained` writes it into the config, for the weights that it saves."""
        return self.bridge.dtype

    # Frozen models

    def train(self, mode: bool = True):
        """Only the bridge has a training mode: the frozen models would drop out, and drop their caches."""
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
            input_ids: (batch, N), the Receiver's prompt, left-padded; with `labels` the prompt and then the
                target, (batch, N + T), the target right-padded, so that each target follows its kickstart
                directly.
            attention_mask: as `input_ids`.
            sharer_input_ids, sharer_attention_mask, sharer_hidden_states: see `bridged_cache`.
            labels: (batch, N + T), -100 on the prompt and on padding. All targets begin in the same column.
            past_key_values: an empty cache, which is filled, or one that is bridged already; `input_ids` then
                holds the whole prompt or, with a longer `attention_mask`, the new tokens.
            num_items_in_batch: the number of targets over accumulated batches, from the Trainer.
            use_cache: False leaves the cache out of the output; there is one either way.
            cache: the newer name of `past_key_values`.
            skip_logits: with `labels`, compute the loss alone; the same loss, in much less memory. `logits`
                is None then.
            kwargs: passed to the Receiver.

        Returns:
            `logits` (batch, 1, vocabulary) of the token after the prompt; with `labels` (batch, T + 1,
            vocabulary), and `loss`.
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
            prompt = input_ids[:, :start]
            prompt_mask = None if attention_mask is None else attention_mask[:, :start]
        if past_key_values is None or (to_fill(past_key_values) and not self._bridge_disabled):
            sharer_inputs = sharer_input_ids, sharer_attention_mask, sharer_hidden_states
            past_key_values = self.bridged_cache(prompt, prompt_mask, *sharer_inputs, past_key_values)
        if not self._bridge_disabled:
            mask = torch.ones_like(prompt) if prompt_mask is None else prompt_mask
            check_rope(self.receiver, mask, input_ids.shape[1] - prompt.shape[1])
        cached = past_key_values.get_seq_length() - message_length(past_key_values)
        total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
        if cached >= total:
            raise ValueError(
                f"past_key_values holds {cached} positions and the prompt has {total}; expected at least one "
                "that is new."
            )
        new = input_ids[:, cached - total :] if input_ids.shape[1] == total and cached else input_ids

        inputs = model_inputs(self.receiver, new, attention_mask, past=cached)
        inputs["attention_mask"] = with_message(past_key_values, inputs["attention_mask"])
        evaluating(self.receiver)
        skip_logits = skip_logits and labels is not None
        receiver = self.receiver
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if recompute:
            receiver = recomputing(receiver, *self._recomputation)
        receiver = backbone(receiver) if skip_logits else receiver
        outputs = receiver(**inputs, **{CACHE: past_key_values}, use_cache=True, **kwargs)
        logits, loss = None if skip_logits else outputs.logits, None
        if labels is not None:
            labels = labels[:, -new.shape[1] :]
            if skip_logits:
                loss = loss_without_logits(
                    self.receiver, outputs.last_hidden_state, labels, num_items_in_batch
                )
            else:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels.to(logits.device),
                    vocab_size=logits.shape[-1],
                    num_items_in_batch=num_items_in_batch,
                )
        if logits is not None and not cached:  # the bridge is disabled: the Receiver read the prompt here
            logits = logits[:, prompt.shape[1] - 1 :]
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions,
            **{CACHE: None if use_cache is False or recompute else outputs[CACHE]},
        )  # fmt: skip

    # Text

    def conversation(self) -> H2CConversation:
        """Return a conversation of several turns: each turn reads only the new tokens."""
        return H2CConversation(self)

    def prefix_cache(self, max_bytes: int = 2**30) -> H2CPrefixCache:
        """Return a cache for prompts that begin alike: both models read the shared prefix once."""
        return H2CPrefixCache(self, max_bytes)


# `transformers serve` takes a model for one that writes text if its class is listed here.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(H2CBridgeConfig.model_type, H2CForCausalLM.__name__)

__all__ = ["H2CForCausalLM"]

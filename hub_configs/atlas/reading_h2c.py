"""The three steps to a bridged cache: the Sharer reads, the Receiver prefills, the bridge rewrites."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from .configuration_h2c import H2CBridgeConfig
from .drafts_h2c import Draft, write_draft
from .families_h2c import backbone, evaluating
from .inputs_h2c import CACHE, check_prompt, execution_device, forked, model_inputs, to_fill
from .modeling_h2c_bridge import H2CBridgeModel
from .passes_h2c import PASS_TOKENS, in_groups, join, passes_by_length, read_through, side_stream


class ReadingMixin:
    """Methods of `H2CForCausalLM` from the two prompts to the cache from which the Receiver answers."""

    config: H2CBridgeConfig
    bridge: H2CBridgeModel
    sharer: PreTrainedModel | None
    receiver: PreTrainedModel
    _bridge_disabled: bool

    @torch.compiler.disable  # frozen passes are run as they are: each family would be compiled in its own way
    @torch.no_grad()
    def read(
        self,
        sharer_input_ids: torch.Tensor,
        sharer_attention_mask: torch.Tensor | None = None,
        layers: list[int] | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the Sharer's hidden states, (batch, sharer length, sharer_hidden_size) each; no LM head.

        Args:
            layers: which of the S + 1 states to keep, by default all; the others are None.
            cache: the Sharer's cache of earlier tokens; `sharer_input_ids` are added to it, and
                `sharer_attention_mask` then covers both. None: no cache.

        Raises:
            ValueError: if the model was made with the Sharer's config only.
        """
        passes = self._passes(sharer_input_ids, sharer_attention_mask if cache is None else None)
        read: list[torch.Tensor | None] = [None] * (self.config.sharer_num_hidden_layers + 1)
        layers = list(range(len(read))) if layers is None else sorted(layers)
        if len(passes) == 1:
            self._read(sharer_input_ids, sharer_attention_mask, layers, read.__setitem__, cache)
            return tuple(read)
        # Rows of like lengths at a time, each without the padding that longer ones would bring; then padded
        # as they came.
        for rows, length in passes:

            def keep(index: int, state: torch.Tensor, rows: list[int] = rows, length: int = length) -> None:
                if read[index] is None:
                    read[index] = state.new_zeros(*sharer_input_ids.shape, state.shape[-1])
                read[index][rows, -length:] = state

            self._read(sharer_input_ids[rows, -length:], sharer_attention_mask[rows, -length:], layers, keep)
        return tuple(read)

    def _passes(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> list[tuple[list[int], int]]:
        """Which rows the Sharer reads together."""
        if self.sharer is None:
            raise ValueError(
                "This model was made without the Sharer's weights: expected sharer_hidden_states, got "
                "sharer_input_ids."
            )
        if attention_mask is None or torch.compiler.is_compiling():
            return [(list(range(len(input_ids))), input_ids.shape[1])]
        return passes_by_length(
            attention_mask, PASS_TOKENS.get(execution_device(self.sharer).type, PASS_TOKENS["cuda"])
        )

    def _read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layers: list[int],
        take: Callable,
        cache: Cache | None = None,
    ) -> None:
        """`read` in one pass, which hands each state of `layers` to `take`."""
        evaluating(self.sharer)
        if attention_mask is not None and not torch.compiler.is_compiling() and attention_mask.all():
            attention_mask = None
        inputs = model_inputs(
            self.sharer, input_ids, attention_mask, past=0 if cache is None else cache.get_seq_length()
        )
        read_through(self.sharer, {**inputs, CACHE: cache, "use_cache": cache is not None}, layers, take)

    @torch.compiler.disable
    @torch.no_grad()
    def prefill(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: Cache | None = None
    ) -> Cache:
        """Return the Receiver's own cache of all `input_ids` but the last, the kickstart.

        Args:
            input_ids, attention_mask: (batch, N), left-padded.
            cache: the cache of earlier tokens, to which these are added; `attention_mask` then covers both.
        """
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
        """Let the Sharer write a draft, which the bridge reads after the prompt. `_asdict()` without
        `lengths` gives inputs of `forward`.

        Args:
            sharer_input_ids, sharer_attention_mask: (batch, sharer length), the Sharer's prompt, left-padded.
            sharer_max_new_tokens: the most tokens of a draft.
            kwargs: of the Sharer's `generate` (do_sample, temperature, eos_token_id ...); greedy by default.

        Raises:
            ValueError: see `write_draft`; and for fewer than 1 token, or a model without the Sharer's
                weights.
        """
        if not isinstance(sharer_max_new_tokens, int) or sharer_max_new_tokens < 1:
            raise ValueError(
                f"sharer_max_new_tokens is {sharer_max_new_tokens!r}; expected a number of tokens, at least "
                "1."
            )
        self._passes(sharer_input_ids, None)  # refuses a model without a Sharer
        evaluating(self.sharer)
        return write_draft(
            self.sharer, sharer_input_ids, sharer_attention_mask, sharer_max_new_tokens, **kwargs
        )

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

        It holds the N - 1 positions of an N-token prompt, rewritten, or after the T positions of a message
        (`message_h2c`), as the bridge's form is. It is empty if the bridge is disabled: the Receiver then
        reads the prompt itself, as it does alone.

        Args:
            input_ids, attention_mask: (batch, N), the Receiver's prompt, left-padded.
            sharer_input_ids, sharer_attention_mask: (batch, sharer length), the Sharer's prompt, left-padded.
            sharer_hidden_states: the output of `read`, instead of `sharer_input_ids`.
            receiver_cache: the output of `prefill` for the same prompt, if it is at hand; or an empty cache,
                which is filled.

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
                    "H2CProcessor makes the inputs of both models from one conversation; "
                    "pipeline(model=MODEL, processor=PROCESSOR) needs "
                    "pipeline_class=H2CTextGenerationPipeline."
                )
            if self.sharer is not None:
                check_prompt("sharer_", sharer_input_ids, sharer_attention_mask, self.sharer, least=1)
        read = (
            sharer_input_ids
            if sharer_hidden_states is None
            else sharer_hidden_states[self.bridge.read_layers[0]]
        )
        self.check_receiver_prompt(input_ids, attention_mask, sharer_attention_mask, read.shape[1])
        sharer_batch = len(read)
        if sharer_batch != len(input_ids):
            raise ValueError(
                f"The Sharer got {sharer_batch} prompts and the Receiver {len(input_ids)}; expected as many."
            )

        in_place = to_fill(receiver_cache)
        # First: the Sharer's pass is the longer one.
        with side_stream(execution_device(self.receiver)) as prefill_stream:
            if in_place:
                receiver_cache = self.prefill(input_ids, attention_mask, receiver_cache)
        receiver_mask = None if attention_mask is None else attention_mask[:, :-1]
        # Where nothing is trained, and all rows are read together, the hidden states need not be kept.
        if (
            sharer_hidden_states is None
            and not torch.is_grad_enabled()
            and len(self._passes(sharer_input_ids, sharer_attention_mask)) == 1
        ):
            cache = receiver_cache if in_place else forked(receiver_cache)
            self._bridge_while_reading(
                sharer_input_ids, sharer_attention_mask, cache, receiver_mask, prefill_stream
            )
            return cache
        if sharer_hidden_states is None:
            sharer_hidden_states = self.read(sharer_input_ids, sharer_attention_mask, self.bridge.read_layers)
        join(prefill_stream, receiver_cache)
        return self.bridge(
            sharer_hidden_states, receiver_cache, sharer_attention_mask, receiver_mask, in_place=in_place
        )

    def check_receiver_prompt(
        self, input_ids, attention_mask, sharer_attention_mask, sharer_length: int
    ) -> None:
        """Refuse a Receiver prompt that cannot be bridged; see `check_prompt`. A message needs room in the
        Receiver's context window."""
        message_mask = None
        if self.config.bridge_form == "message":
            given = sharer_attention_mask is not None
            message_mask = (
                sharer_attention_mask
                if given
                else torch.ones(len(input_ids), sharer_length, dtype=torch.long)
            )
        check_prompt(
            "", input_ids, attention_mask, self.receiver, least=2, bridged=True, message_mask=message_mask
        )

    @torch.compiler.disable
    def _bridge_while_reading(
        self, sharer_input_ids, sharer_attention_mask, cache: Cache, receiver_attention_mask, prefill_stream
    ) -> None:
        """Rewrite `cache`, each group of layers as soon as the Sharer has computed its hidden states."""
        bridge, depth = self.bridge, self.config.sharer_num_hidden_layers

        def rewrite(group: tuple[int, int], states: dict[int, torch.Tensor]) -> None:
            join(prefill_stream, cache)
            hidden_states = tuple(states.get(index) for index in range(depth + 1))
            bridge(
                hidden_states,
                cache,
                sharer_attention_mask,
                receiver_attention_mask,
                in_place=True,
                group=group,
            )

        groups = bridge.groups(len(sharer_input_ids), max(cache.get_seq_length(), sharer_input_ids.shape[1]))
        self._read(sharer_input_ids, sharer_attention_mask, bridge.read_layers, in_groups(groups, rewrite))


__all__ = ["ReadingMixin"]

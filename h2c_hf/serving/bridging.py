"""Bridge prompts that arrive one by one in batches, on a thread. Both the bridge server and the vLLM
connector use it; imports neither."""

import contextlib
import hashlib
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers.cache_utils import Cache

from ..modeling import H2CBridgeConfig, H2CForCausalLM
from ..modeling.message_h2c import message_mask, rotated, with_message
from ..modeling.processing_h2c import left_pad


MAX_BATCH_TOKENS = 4096
CACHE_BYTES = 2**28


class QueueFullError(RuntimeError):
    """More prompts are waiting than the queue takes. The client should try again later, or elsewhere."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of both models, as token ids."""

    input_ids: tuple[int, ...]
    sharer_input_ids: tuple[int, ...]
    control: str | None = None

    @cached_property
    def digest(self) -> str:
        """Names everything that the bridged keys and values depend on, but for the models."""
        return hashlib.sha256(
            repr((self.input_ids, self.sharer_input_ids, self.control)).encode()
        ).hexdigest()

    @property
    def length(self) -> int:
        return max(len(self.input_ids), len(self.sharer_input_ids))


@dataclass
class Bridged:
    """The bridged keys and values of all tokens but the last: (layers, heads, T + N - 1, head_dim) each,
    rotated to positions from 0 on. T is the length of the message that stands before the prompt in the
    message form, and 0 in the other.

    `ready` is a CUDA event after which they may be read on another stream; None on a CPU.
    """

    keys: torch.Tensor
    values: torch.Tensor
    ready: "torch.cuda.Event | None" = None

    @property
    def bytes(self) -> int:
        return sum(states.numel() * states.element_size() for states in (self.keys, self.values))


class Bridger:
    """Bridges prompts in the order of their submission. Those that wait share one pass of each model.

    Recent results are kept, so that a prompt with several answers, a repeated prompt and a preempted request
    are bridged once.
    """

    def __init__(
        self,
        model: H2CForCausalLM,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_queue: int = 1024,
        cache_bytes: int = CACHE_BYTES,
        dtype: torch.dtype | None = None,
    ):
        """
        Args:
            max_batch_tokens: of one pass, padding included; a longer prompt is bridged alone.
            max_queue: prompts that may wait.
            cache_bytes: of kept results.
            dtype: of the results; by default the Receiver's.
        """
        self.model, self.max_batch_tokens, self.cache_bytes = model.eval(), max_batch_tokens, cache_bytes
        self.dtype = dtype or model.receiver.dtype
        self.passes = 0  # bridged batches, for tests and metrics
        self._kept: OrderedDict[str, Bridged] = OrderedDict()
        self._queue: queue.Queue[tuple[Prompt, Future] | None] = queue.Queue(max_queue)
        device = model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = threading.Thread(target=self._run, name="h2c-bridger", daemon=True)
        self._thread.start()

    def submit(self, prompt: Prompt) -> Future:
        """Return a future of a `Bridged`. A cancelled one that has not begun costs nothing.

        Raises:
            QueueFullError: if `max_queue` prompts are waiting.
        """
        future: Future = Future()
        try:
            self._queue.put_nowait((prompt, future))
        except queue.Full:
            raise QueueFullError(
                f"{self._queue.maxsize} prompts are waiting to be bridged; try again later."
            ) from None
        return future

    def close(self) -> None:
        """Cancel the prompts that wait, and end the thread after the batch that is under way."""
        with contextlib.suppress(queue.Empty):
            while (waiting := self._queue.get_nowait()) is not None:
                waiting[1].cancel()
        self._queue.put(None)
        self._thread.join(30)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            waiting, ended = [first], False
            with contextlib.suppress(queue.Empty):
                while True:
                    if (following := self._queue.get_nowait()) is None:
                        ended = True
                        break
                    waiting.append(following)
            begun = [(prompt, future) for prompt, future in waiting if future.set_running_or_notify_cancel()]
            for batch in batches(begun, self.max_batch_tokens):
                self._answer(batch)
            if ended:
                return

    def _answer(self, batch: list[tuple[Prompt, Future]]) -> None:
        new = {prompt.digest: prompt for prompt, _ in batch if prompt.digest not in self._kept}
        results: dict[str, Bridged | Exception] = {
            prompt.digest: self._kept[prompt.digest] for prompt, _ in batch if prompt.digest not in new
        }
        try:
            results |= self._bridge(list(new.values())) if new else {}
        except Exception as error:  # one bad prompt must not fail the others of its batch
            for digest, prompt in new.items():
                try:
                    results |= self._bridge([prompt]) if len(new) > 1 else {digest: error}
                except Exception as own:
                    results[digest] = own
        for prompt, future in batch:
            result = results[prompt.digest]
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                self._keep(prompt.digest, result)
                future.set_result(result)

    def _keep(self, digest: str, bridged: Bridged) -> None:
        self._kept[digest] = bridged
        self._kept.move_to_end(digest)
        while self._kept and sum(one.bytes for one in self._kept.values()) > self.cache_bytes:
            self._kept.popitem(last=False)

    @torch.no_grad()
    def _bridge(self, prompts: list[Prompt]) -> dict[str, Bridged]:
        """Bridge a left-padded batch.

        Raises:
            ValueError: if `bridged_cache` refuses the batch, or its cache does not hold all tokens but the
                last.
        """
        self.passes += 1
        on_stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with on_stream:
            ids, mask = left_pad([list(prompt.input_ids) for prompt in prompts], 0)
            controlled = {prompt.control for prompt in prompts}
            sharer_ids, sharer_mask = left_pad([list(prompt.sharer_input_ids) for prompt in prompts], 0)
            sharer = {"sharer_input_ids": sharer_ids, "sharer_attention_mask": sharer_mask}
            if controlled == {"zeros"}:
                sharer = {
                    "sharer_hidden_states": zero_states(self.model, sharer.pop("sharer_input_ids")),
                    **sharer,
                }
            elif controlled != {None}:
                raise ValueError(
                    f"Got the controls {controlled}; expected one for all prompts of a batch, None or "
                    "'zeros'."
                )
            cache = self.model.bridged_cache(ids, mask, **sharer)
            held = with_message(cache, mask[:, :-1]).bool()  # (batch, T + N - 1)
            if cache.get_seq_length() != held.shape[1]:
                raise ValueError(
                    f"The bridged cache has {cache.get_seq_length()} positions; expected {held.shape[1]}."
                )
            from_zero(self.model, cache)
            keys, values = (  # (batch, layers, heads, T + N - 1, head_dim) each
                torch.stack([getattr(layer, name) for layer in cache.layers], 1).to(self.dtype)
                for name in ("keys", "values")
            )
            results = {}
            for row, prompt in enumerate(prompts):
                own = held[row].to(keys.device)
                ready = torch.cuda.Event() if self._stream else None
                results[prompt.digest] = Bridged(keys[row][:, :, own], values[row][:, :, own], ready)
                if ready:
                    ready.record(self._stream)
        return results


def batches(waiting: list[tuple[Prompt, Future]], most: int) -> list[list[tuple[Prompt, Future]]]:
    """Prompts of like lengths and one control together, each batch of at most `most` tokens of the longer
    prompt, padding included."""
    found: list[list[tuple[Prompt, Future]]] = []
    for one in sorted(waiting, key=lambda one: (one[0].control or "", one[0].length)):
        same = found and found[-1][0][0].control == one[0].control
        if same and (len(found[-1]) + 1) * one[0].length <= most:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def from_zero(model: H2CForCausalLM, cache: Cache) -> None:
    """Rotate the keys of a cache with a message, in place, so that the message begins at position 0 and the
    prompt follows it. The model has the message at -T ... -1 and the prompt from 0 on; vLLM counts from 0.
    With rotary positions only differences count."""
    mask = message_mask(cache)
    if mask is None:
        return
    for index, layer in enumerate(cache.layers):
        shift = mask.sum(1, keepdim=True).to(layer.keys.device).expand(-1, layer.keys.shape[2])
        layer.keys = rotated(layer.keys, shift, model.bridge.frequencies(index))


def message_tokens(config: H2CBridgeConfig, sharer_length: int) -> int:
    """The cache positions of a message before the Receiver's prompt; 0 in the form without a message."""
    return sharer_length if config.bridge_form == "message" else 0


def zero_states(model: H2CForCausalLM, sharer_input_ids: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The hidden states of the control "zeros", for `bridged_cache`. Only their length depends on the prompt:
    the Sharer need not read."""
    state = torch.zeros(
        *sharer_input_ids.shape,
        model.config.sharer_hidden_size,
        dtype=model.sharer.dtype,
        device=model.device,
    )
    read = set(model.bridge.read_layers)
    return tuple(
        state if index in read else None for index in range(model.config.sharer_num_hidden_layers + 1)
    )


def pair_facts(model: H2CForCausalLM) -> dict:
    """The description of a pair that a server gives, and a connector compares with vLLM's model."""
    config = model.receiver.config.get_text_config(decoder=True)
    fields = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "rms_norm_eps", "hidden_act",
    )  # fmt: skip
    sharer = model.sharer.config.get_text_config(decoder=True)
    return {
        "receiver_model_id": model.config.receiver_model_id,
        "receiver": {
            name: getattr(config, name) for name in fields if getattr(config, name, None) is not None
        },
        "layers": model.config.receiver_num_hidden_layers, "heads": model.config.receiver_num_key_value_heads,
        "head_dim": model.config.receiver_head_dim,
        "bridge_form": model.config.bridge_form, "dtype": str(model.receiver.dtype).removeprefix("torch."),
        "sharer_window": getattr(sharer, "max_position_embeddings", None),
    }  # fmt: skip

"""A KV connector for vLLM, which runs the Receiver: bridged keys and values go into its paged cache.

    vllm serve RECEIVER --middleware h2c_hf.serving.middleware.H2CMiddleware --kv-transfer-config '{
        "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector",
        "kv_role": "kv_consumer", "kv_connector_extra_config": {"bridge": "REPO"}}'

The connector says that all tokens of a prompt but the last are available from outside. vLLM computes the last
token, the kickstart, and decodes as usual. A request's `kv_transfer_params` hold `sharer_input_ids` and, if
wanted, `control` and `input_ids` (the prompt that the sender expects); {"h2c": false} leaves the Receiver
alone, and a request with neither fails. For a bridge of the message form the prompt begins with
`message_tokens` placeholder ids, one for each Sharer token.

`kv_connector_extra_config`:
    bridge: repo or folder. The Sharer, the bridge and the Receiver's prefill then run in vLLM's first worker.
    urls: instead, a list of bridge servers (see `bridge_server`). Their token is read from H2C_BRIDGE_TOKEN.
    async: bridge while other requests decode. False bridges between steps, all waiting prompts in one pass.
        Default: false if the bridge runs on the CPU that decodes, and would take its cores; true on a GPU and
        with `urls`.
    dtype, device, max_batch_tokens, cache_bytes: of a local bridge.
    timeout: seconds for a prompt, with `urls`.
"""

import concurrent.futures
import os
import secrets
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger

from ..loading import load_model
from .bridge_client import BridgeClient
from .bridge_server import TOKEN_VARIABLE
from .bridging import CACHE_BYTES, MAX_BATCH_TOKENS, Bridged, Bridger, Prompt, pair_facts
from .vllm_checks import check_memory, check_receiver, check_vllm, read_request


logger = init_logger("vllm.h2c")

# While only loads are under way vLLM asks again and again; each time it waits this long for one to finish.
IDLE_SECONDS = 0.005


@dataclass
class Load:
    """A request's positions to write: `first` to before `last`, its kickstart, into `block_ids` (from 0)."""

    request_id: str
    prompt: Prompt | None
    block_ids: list[int]
    first: int
    last: int
    asynchronous: bool
    refused: str | None = None  # why the request fails


@dataclass
class H2CMetadata(KVConnectorMetadata):
    """The loads of a step."""

    loads: list[Load] = field(default_factory=list)


class H2CConnector(KVConnectorBase_V1):
    """The scheduler's object decides which requests are bridged, rank 0 bridges, workers write blocks."""

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        self._options = dict(self._kv_transfer_config.kv_connector_extra_config)
        check_vllm(vllm_config, kv_cache_config, self._options)
        self._block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._async = self._options.get(
            "async", "urls" in self._options or self._bridge_device().type != "cpu"
        )
        # Scheduler. Of each request: its prompt, why it is refused, or None for no bridge.
        self._prompts: dict[str, Prompt | str | None] = {}
        self._loads: list[Load] = []
        self._salt = secrets.token_hex(16)
        # Worker
        self._pending: dict[str, tuple[Load, Future | None]] = {}
        self._failed_blocks: set[int] = set()
        self._idle = False
        if role is KVConnectorRole.WORKER:
            self._layers = vllm_config.compilation_config.static_forward_context
            self._group = get_tp_group()
            self._bridger = self._start_bridger() if self._group.rank_in_group == 0 else None

    # Scheduler

    def on_new_request(self, request) -> None:
        """Decide whether a request is bridged or refused, and salt its block hashes.

        Bridged positions depend on the whole prompt and on the Sharer's prompt. vLLM hashes a block by the
        tokens up to its end, so without a salt of both, other requests would be given bridged blocks.
        """
        params = request.kv_transfer_params or {}
        if params.get("h2c") is False:
            self._prompts[request.request_id] = None
            return
        prompt = read_request(request, params)
        self._prompts[request.request_id] = prompt
        if isinstance(prompt, str):
            logger.error("Request %s is refused: %s", request.request_id, prompt)
            # vLLM would then not ask for a load, and answer without the bridge.
            request.skip_reading_prefix_cache = False
        name = secrets.token_hex(16) if isinstance(prompt, str) else prompt.digest
        request.cache_salt = sha256(f"{self._salt}{request.cache_salt}{name}".encode()).hexdigest()
        request.block_hashes = []
        request.update_block_hashes()

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        """All tokens of the prompt but the kickstart. After a preemption, vLLM computes the answer again."""
        prompt = self._prompts.get(request.request_id)
        if prompt is None:
            return 0, False
        if isinstance(prompt, str):  # an asynchronous load can fail, whatever the length
            return max(1, request.num_prompt_tokens - 1), True
        missing = max(0, request.num_prompt_tokens - 1 - num_computed_tokens)
        return missing, self._async and missing > 0

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        if num_external_tokens == 0:
            return
        prompt, block_ids = self._prompts[request.request_id], blocks.get_block_ids()[0]
        if isinstance(prompt, str):
            self._loads.append(Load(request.request_id, None, block_ids, 0, 0, True, refused=prompt))
        else:
            last = request.num_prompt_tokens - 1
            self._loads.append(
                Load(request.request_id, prompt, block_ids, last - num_external_tokens, last, self._async)
            )

    def build_connector_meta(self, scheduler_output):
        loads, self._loads = self._loads, []
        return H2CMetadata(loads)

    def request_finished(self, request, block_ids):
        self._prompts.pop(request.request_id, None)
        return False, None

    # Worker

    def _bridge_device(self) -> torch.device:
        """The device of a local bridge."""
        return torch.device(self._options.get("device", self._vllm_config.device_config.device))

    def _start_bridger(self) -> Bridger | BridgeClient:
        """
        Raises:
            ValueError: for a bridge that was made for another Receiver than vLLM runs.
            BridgeServerError: if a bridge server does not answer.
        """
        options, config = self._options, self._vllm_config.model_config
        if "urls" in options:
            client = BridgeClient(
                options["urls"], os.environ.get(TOKEN_VARIABLE), options.get("timeout", 60.0)
            )
            for facts in client.pairs():
                check_receiver(facts, config)
            return client
        dtype = getattr(torch, options["dtype"]) if "dtype" in options else config.dtype
        model = load_model(options["bridge"], dtype=dtype)
        check_receiver(pair_facts(model), config)
        device = self._bridge_device()
        check_memory(model, device)
        sizes = {
            "max_batch_tokens": options.get("max_batch_tokens", MAX_BATCH_TOKENS),
            "cache_bytes": options.get("cache_bytes", CACHE_BYTES),
        }
        return Bridger(model.to(device), **sizes)

    def register_kv_caches(self, kv_caches):
        self._names = sorted(
            kv_caches, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()]
        )

    def start_load_kv(self, forward_context, **kwargs):
        self._idle = forward_context.attn_metadata is None
        loads = self._get_connector_metadata().loads
        now = [load for load in loads if not load.asynchronous]
        for load in loads:
            self._pending[load.request_id] = (load, self._submit(load))
        if now:
            self._deliver([load.request_id for load in now], self._results(now))

    def _submit(self, load: Load) -> Future | None:
        """None on the workers that do not bridge."""
        if self._bridger is None:
            return None
        future: Future = Future()
        if load.refused is not None:
            future.set_exception(ValueError(load.refused))
            return future
        try:
            return self._bridger.submit(load.prompt)
        except Exception as error:  # a full queue
            future.set_exception(error)
            return future

    def _results(self, loads: list[Load]) -> list[Bridged | None] | None:
        """The results of loads; None for a load that failed. None on the workers that do not bridge."""
        if self._bridger is None:
            return None
        results: list[Bridged | None] = []
        for load in loads:
            try:
                results.append(self._pending[load.request_id][1].result())
            except (Exception, concurrent.futures.CancelledError) as error:
                logger.error("Request %s could not be bridged, and fails: %s", load.request_id, error)
                results.append(None)
        return results

    def get_transfer_results(self, finished_req_ids):
        """Write the asynchronous loads that are ready, in one step on all workers: rank 0 tells which."""
        if not self._pending:
            return KVConnectorTransferResults()
        ready = self._ready(finished_req_ids)
        if self._group.world_size > 1:
            ready = self._group.broadcast_object(ready, src=0)
        if not ready:
            return KVConnectorTransferResults()
        self._deliver(ready, self._results([self._pending[request_id][0] for request_id in ready]))
        return KVConnectorTransferResults(finished_recving=set(ready))

    def _ready(self, finished_req_ids) -> list[str] | None:
        if self._bridger is None:
            return None
        futures = {request_id: future for request_id, (_, future) in self._pending.items()}
        for request_id in futures.keys() & set(finished_req_ids):
            futures[request_id].cancel()  # its client hung up before its turn
        if self._idle:
            concurrent.futures.wait(futures.values(), IDLE_SECONDS, concurrent.futures.FIRST_COMPLETED)
        return [request_id for request_id, future in futures.items() if future.done()]

    def _deliver(self, request_ids: list[str], results: list[Bridged | None] | None) -> None:
        """Write results into this worker's heads of the paged cache, or note blocks that fail."""
        if self._group.world_size > 1:
            results = self._broadcast(results, len(request_ids))
        for request_id, bridged in zip(request_ids, results, strict=True):
            load, _ = self._pending.pop(request_id)
            try:
                if bridged is not None:
                    self._write(load, bridged)
                    continue
            except Exception:  # one bad request must not end the engine
                logger.exception("Request %s could not be written, and fails.", request_id)
            self._failed_blocks.update(load.block_ids[load.first // self._block_size :])

    def _broadcast(self, results: list[Bridged | None] | None, count: int) -> list[Bridged | None]:
        """Rank 0's results, on all workers."""
        if results is not None:
            for bridged in results:
                if bridged is not None and bridged.ready is not None:
                    bridged.ready.synchronize()
            sent = {
                f"{n}.{name}": getattr(one, name)
                for n, one in enumerate(results)
                if one
                for name in ("keys", "values")
            }
            self._group.broadcast_tensor_dict(sent, src=0)
            return results
        got = self._group.broadcast_tensor_dict(src=0)
        return [
            Bridged(got[f"{n}.keys"], got[f"{n}.values"]) if f"{n}.keys" in got else None
            for n in range(count)
        ]

    def _write(self, load: Load, bridged: Bridged) -> None:
        """Write with the attention backend's own kernel, which knows the layout of the cache.

        On CUDA the kernels run on vLLM's stream, after the forward pass that is under way and before the one
        that reads the blocks.
        """
        expected = (len(self._names), load.last)
        if (bridged.keys.shape[0], bridged.keys.shape[2]) != expected:
            raise ValueError(
                f"Got {tuple(bridged.keys.shape)} bridged keys; expected {expected} layers and positions."
            )
        positions = torch.arange(load.first, load.last)
        slots = (
            torch.tensor(load.block_ids)[positions // self._block_size] * self._block_size
            + positions % self._block_size
        )
        heads, rank, workers = bridged.keys.shape[1], self._group.rank_in_group, self._group.world_size
        own = slice(rank * heads // workers, rank * heads // workers + max(1, heads // workers))
        if bridged.ready is not None:
            stream = torch.cuda.current_stream(self._layers[self._names[0]].kv_cache.device)
            stream.wait_event(bridged.ready)
            for states in (bridged.keys, bridged.values):
                # Else the allocator may give their memory away before it is copied.
                states.record_stream(stream)
        for index, name in enumerate(self._names):
            layer = self._layers[name]
            cache = layer.kv_cache
            # (heads, positions, head_dim) -> (positions, heads, head_dim)
            keys, values = (
                states[index, own, load.first :]
                .transpose(0, 1)
                .to(cache.device, self._vllm_config.model_config.dtype)
                .contiguous()
                for states in (bridged.keys, bridged.values)
            )
            layer.impl.do_kv_cache_update(layer, keys, values, cache, slots.to(cache.device))

    def get_block_ids_with_load_errors(self):
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def wait_for_layer_load(self, layer_name):
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    def wait_for_save(self):
        pass

    def shutdown(self):
        if self.role is KVConnectorRole.WORKER and self._bridger is not None:
            self._bridger.close()

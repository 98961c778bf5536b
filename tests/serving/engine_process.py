"""Runs in vLLM's environment: start an engine by a JSON file, and answer requests on standard input.

    python engine_process.py SPECIFICATION.json

The specification is {"engine": arguments of LLM, "connector": extra config, "transfer": fields of the KV
transfer config, "environment": variables}. The process prints {"error"} or {}, and then a line for each line
that it reads: for a list of waves, each a list of requests, {"waves": [[answers of a request]], "passes",
"hits", "preemptions", "blocks"}. A request is {"ids", "params" (kv_transfer_params), "tokens", "bias", "n",
"temperature", "sampling"}.
"""

import json
import os
import sys


DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def started(specification: dict):
    from vllm import LLM

    engine = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "skip_tokenizer_init": True,
        "seed": 0,
    }
    engine |= specification["engine"]
    engine["kv_transfer_config"] = {
        "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector",
        "kv_role": "kv_consumer", "kv_connector_extra_config": specification["connector"],
        **specification["transfer"],
    }  # fmt: skip
    return LLM(**engine, disable_log_stats=False)


def answered(llm, wave: list[dict]) -> list[list]:
    """The tokens of each answer of each request, or "error"."""
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=request["ids"]) for request in wave]
    sampling = [
        SamplingParams(
            n=request.get("n", 1), temperature=request.get("temperature", 0), max_tokens=request["tokens"],
            # JSON has texts for keys.
            logit_bias={int(token): bias for token, bias in request["bias"].items()},
            extra_args={"kv_transfer_params": request["params"]} if "params" in request else None,
            **request.get("sampling", {}),
        )
        for request in wave
    ]  # fmt: skip
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return [
        [[*map(int, one.token_ids)] if one.finish_reason != "error" else "error" for one in out.outputs]
        for out in outputs
    ]


def counted(llm) -> dict:
    """Counts since the start, and the blocks in use; without those the engine's process does not tell."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    counts = {"preemptions": metrics["vllm:num_preemptions"], "hits": metrics["vllm:prefix_cache_hits"]}
    if (core := getattr(llm.llm_engine.engine_core, "engine_core", None)) is not None:
        pool = core.scheduler.kv_cache_manager.block_pool
        counts["blocks"] = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one is the null block
    if has_kv_transfer_group() and hasattr(get_kv_transfer_group(), "_bridger"):
        counts["passes"] = getattr(get_kv_transfer_group()._bridger, "passes", None)
    return counts


def tell(result: dict) -> None:
    print("RESULT " + json.dumps(result), flush=True)


def main(specification: dict) -> None:
    try:
        llm = started(specification)
    except Exception as error:
        return tell({"error": f"{type(error).__name__}: {error}"})
    tell({})
    for line in sys.stdin:
        tell({"waves": [answered(llm, wave) for wave in json.loads(line)], **counted(llm)})
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        specification = json.load(file)
    os.environ.update({**DEFAULTS, **specification["environment"]})
    main(specification)

"""Runs in vLLM's environment: starts an engine as a file of JSON says, and prints what it answered.

    python vllm_process.py SPECIFICATION.json

The specification is {"engine": arguments of LLM, "connector": extra config, "transfer": fields of the KV transfer config,
"environment": variables, "waves": [[request, ...], ...]}; a request is {"ids", "params" (kv_transfer_params), "tokens", "bias", "n",
"temperature", "sampling"}. It prints a line of JSON: {"waves": [[answers of a request]], "passes", "hits", "blocks", "error"}.
"""

import json
import os
import sys


DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def biases(request: dict) -> dict[int, float]:
    """JSON has texts for keys."""
    return {int(token): bias for token, bias in request["bias"].items()}


def run(specification: dict) -> dict:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "skip_tokenizer_init": True, "seed": 0}
    engine |= specification["engine"]
    if "connector" in specification:
        engine["kv_transfer_config"] = {
            "kv_connector": "H2CConnector", "kv_connector_module_path": "h2c_hf.serving.vllm_connector", "kv_role": "kv_consumer",
            "kv_connector_extra_config": specification["connector"], **specification.get("transfer", {}),
        }  # fmt: skip
    try:
        llm = LLM(**engine, disable_log_stats=False)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    waves = []
    for wave in specification["waves"]:
        prompts = [TokensPrompt(prompt_token_ids=request["ids"]) for request in wave]
        sampling = [
            SamplingParams(
                n=request.get("n", 1), temperature=request.get("temperature", 0),
                max_tokens=request.get("tokens", 16), logit_bias=biases(request),
                extra_args={"kv_transfer_params": request["params"]} if "params" in request else None, **request.get("sampling", {}),
            )
            for request in wave
        ]  # fmt: skip
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        waves.append([[[*map(int, one.token_ids)] if one.finish_reason != "error" else "error" for one in out.outputs] for out in outputs])
    result = {"waves": waves}
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    result["preemptions"] = metrics.get("vllm:num_preemptions")
    result["hits"] = metrics.get("vllm:prefix_cache_hits")
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if core is not None:
        pool = core.scheduler.kv_cache_manager.block_pool
        result["blocks"] = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one is the null block
    if has_kv_transfer_group() and hasattr(get_kv_transfer_group(), "_bridger"):
        result["passes"] = getattr(get_kv_transfer_group()._bridger, "passes", None)
    llm.llm_engine.engine_core.shutdown()
    return result


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        specification = json.load(file)
    os.environ.update({**DEFAULTS, **specification.get("environment", {})})
    print("RESULT " + json.dumps(run(specification)), flush=True)

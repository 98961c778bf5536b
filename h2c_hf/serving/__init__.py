"""Serve a bridge: `server` stands on transformers' server; `vllm_connector`, `middleware` and `bridge_server`
serve it with vLLM."""

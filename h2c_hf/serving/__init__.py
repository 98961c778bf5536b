"""Serve a bridge: `server` on transformers'; `vllm_connector`, `middleware`, `bridge_server` with vLLM."""

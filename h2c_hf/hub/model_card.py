"""The model card of a bridge, from its config."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..modeling import H2CBridgeConfig


CARD = """\
---
{{ card_data }}
---

# {{ repo }}

A Hidden-to-Cache bridge: {{ sharer }} reads the prompt, {{ receiver }} answers from a KV cache that the bridge rewrote.

```python
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained("{{ repo }}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{{ repo }}", trust_remote_code=True)
```
"""


def write_model_card(directory: str | Path, config: H2CBridgeConfig, repo: str) -> Path:
    """Write `README.md` into a bridge's folder; `repo` is the id or the folder that the card tells to load."""
    models = [model for model in (config.sharer_model_id, config.receiver_model_id) if model and not model.startswith(("/", "."))]
    data = ModelCardData(base_model=models or None, library_name="transformers", pipeline_tag="text-generation", tags=["h2c"])
    path = Path(directory) / "README.md"
    models = {"sharer": config.sharer_model_id, "receiver": config.receiver_model_id}
    ModelCard.from_template(data, template_str=CARD, repo=repo, **models).save(path)
    return path

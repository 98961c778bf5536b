"""The embedded world: real facts, a tiny Sharer that knows them and a tiny Receiver that does not."""

from pathlib import Path


# What `h2c atlas build` made and the package ships: sharer/ and receiver/, each a model with its tokenizer.
# And bridge/, trained for them.
MODELS = Path(__file__).parent / "models"

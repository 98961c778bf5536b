"""Hidden-to-Cache: a large model reads, a small model answers, and no text passes between them.

    from h2c_hf import H2CForCausalLM, load_pair
    model, processor = load_pair("atlas")

The names below are imported when they are first used: `import h2c_hf` and `h2c --help` do not wait for torch.
"""

from importlib import import_module

from .hints import REPOSITORY as REPOSITORY
from .hints import missing


__version__ = "0.1.0"

# public name: the module that defines it
_MODULES = {
    "H2CBridgeConfig": "modeling",
    "H2CBridgeModel": "modeling",
    "H2CForCausalLM": "modeling",
    "H2CProcessor": "modeling",
    "H2CTrainer": "training.trainer",
    "H2CTrainingArguments": "training.arguments",
    "load_pair": "loading",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(
            f"module 'h2c_hf' has no attribute {name!r}; expected one of {', '.join(_MODULES)}."
        )
    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(missing(f"h2c_hf.{name}", error, "train")) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])

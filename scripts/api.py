"""Write docs/api.md, the reference of the public names, from their docstrings: `python scripts/api.py`.

Raises:
    ValueError: if a public name, or a public method that its class defines, has no docstring.
"""

import inspect
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
HEAD = (
    "# API reference\n\n"
    "The public names of `h2c_hf`, from their docstrings; written by `python scripts/api.py`.\n"
)
# Public methods that classes of ours inherit from mixins of ours.
OWN = "h2c_hf."
MOST_PARAMETERS = 40


def page() -> str:
    """Return the text of docs/api.md."""
    import h2c_hf

    names = [name for name in h2c_hf.__all__ if name != "__version__"]
    sections = [HEAD, *(line for name in names for line in section(name, getattr(h2c_hf, name)))]
    return "\n".join(sections).rstrip() + "\n"


def section(name: str, thing) -> list[str]:
    """Return the lines about a class with its methods, or about a function."""
    lines = [f"## {name}", "", *entry(name, thing), ""]
    if inspect.isclass(thing):
        for method, value in public_methods(thing):
            lines += [f"### {name}.{method}", "", *entry(f"{name}.{method}", value), ""]
    return lines


def public_methods(of: type) -> list[tuple[str, object]]:
    """Return the public methods and properties that a class, or a mixin of this package, defines; in order of
    their names. Those of transformers that are overridden without a word do what their documentation there
    says, and are left out."""
    found = {}
    for base in reversed(of.__mro__):
        if base.__module__.startswith(OWN):
            found |= {
                name: getattr(value, "__func__", value)
                for name, value in vars(base).items()
                if not name.startswith("_")
                and (inspect.isfunction(getattr(value, "__func__", value)) or isinstance(value, property))
            }
    stock = {name for base in of.__mro__ if not base.__module__.startswith(OWN) for name in vars(base)}
    return sorted((name, value) for name, value in found.items() if value.__doc__ or name not in stock)


def entry(name: str, thing) -> list[str]:
    """Return the signature and the docstring."""
    text = inspect.getdoc(thing)
    if not text:
        raise ValueError(f"{name} has no docstring; expected one in {inspect.getmodule(thing)}.")
    signature = (
        [] if isinstance(thing, property) else ["```python", f"{name}{signature_of(thing)}", "```", ""]
    )
    return [*signature, "```text", text, "```"]


def signature_of(thing) -> str:
    """Return the parameters without annotations; "(...)" for the many of stock training arguments."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(thing).parameters.values()
    ]
    own = [p for p in parameters if p.name not in ("self", "cls")]
    return str(inspect.Signature(own)) if len(own) <= MOST_PARAMETERS else "(...)"


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
    sys.stdout.write("Wrote docs/api.md\n")

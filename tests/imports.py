"""The imports inside h2c_hf, read from the source."""

import ast
from pathlib import Path


ROOT = Path(__file__).parent.parent


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(path: Path, root: Path = ROOT) -> set[tuple[str, int]]:
    """Return (module of h2c_hf, line) of each import in a file, also of those inside functions."""
    package, found = path.relative_to(root).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = [*base, alias.name]
                is_module = (
                    root.joinpath(*whole).is_dir() or root.joinpath(*whole).with_suffix(".py").is_file()
                )
                found.add((".".join(whole if is_module else base), node.lineno))
    return {(name, line) for name, line in found if name.split(".")[0] == "h2c_hf"}


def part(module: str) -> str:
    """Return the name in the list of layers: `h2c_hf.data.sources` is in "data"."""
    return (*module.split("."), "__init__")[1]

"""Count words of docstrings that make sentences hard to parse: `python scripts/wording.py`. A thermometer, not a goal.

"what" as a noun phrase ("what the bridge reads"), "where" as a conditional ("where nothing is given"), per 1,000 docstring words.
"""

import ast
import re
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
# Not questions ("What is ...?"), and not "where" after a word that it belongs to ("says where", "to where", "the place where").
WHAT = re.compile(r"\bwhat\b(?![^.?!]*\?)", re.IGNORECASE)
WHERE = re.compile(
    r"(?<!\bsay )(?<!\bsays )(?<!\bfrom )(?<!\bto )(?<!\bof )(?<!\bplace )(?<!\bplaces )(?<!\bknow )(?<!\bknows )\bwhere\b(?![^.?!]*\?)",
    re.IGNORECASE,
)


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def counts(folder: Path) -> tuple[int, int, int]:
    """Return (words, "what", "where") over the docstrings of a folder."""
    texts = [text for path in sorted(folder.rglob("*.py")) for text in docstrings(path)]
    words = sum(len(text.split()) for text in texts)
    return words, *(sum(len(pattern.findall(text)) for text in texts) for pattern in (WHAT, WHERE))


if __name__ == "__main__":
    folders = [path for path in sorted((ROOT / "h2c_hf").iterdir()) if any(path.glob("*.py"))]
    for folder in [ROOT / "h2c_hf", *folders]:
        words, what, where = counts(folder)
        if words:
            name = folder.relative_to(ROOT)
            sys.stdout.write(f"{name!s:<24} {words:>6} words  what {1000 * what / words:5.1f}  where {1000 * where / words:5.1f}\n")

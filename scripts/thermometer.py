"""Count signs of text that is hard to parse and of code that is repeated:
`python scripts/thermometer.py [ROOT]`. Not a goal.

Per 1,000 docstring words: "what" as a noun phrase ("what the bridge reads"), "where" as a conditional ("where
nothing is given"). Then the runs of six lines that stand in two files of the package or more, blank lines and
imports left out.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path


ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
RUN = 6  # lines
# Not questions ("What is ...?"), and not "where" after a word that it belongs to ("says where", "to where",
# "the place where").
WHAT = re.compile(r"\bwhat\b(?![^.?!]*\?)", re.IGNORECASE)
WHERE = re.compile(
    r"(?<!\bsay )(?<!\bsays )(?<!\bfrom )(?<!\bto )(?<!\bof )(?<!\bplace )(?<!\bplaces )"
    r"(?<!\bknow )(?<!\bknows )\bwhere\b(?![^.?!]*\?)",
    re.IGNORECASE,
)


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)
    ]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def counts(folder: Path) -> tuple[int, int, int]:
    """Return (words, "what", "where") over the docstrings of a folder."""
    texts = [text for path in sorted(folder.rglob("*.py")) for text in docstrings(path)]
    words = sum(len(text.split()) for text in texts)
    return words, *(sum(len(pattern.findall(text)) for text in texts) for pattern in (WHAT, WHERE))


def repeated_runs(folder: Path) -> int:
    """Return how many runs of `RUN` lines stand in two files of a folder or more, each counted once."""
    runs = Counter()
    for path in sorted(folder.rglob("*.py")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line and not line.startswith(("import ", "from "))]
        runs.update({tuple(lines[start : start + RUN]) for start in range(len(lines) - RUN + 1)})
    return sum(count > 1 for count in runs.values())


if __name__ == "__main__":
    folders = [path for path in sorted((ROOT / "h2c_hf").iterdir()) if any(path.glob("*.py"))]
    for folder in [ROOT / "h2c_hf", *folders]:
        words, what, where = counts(folder)
        if words:
            name = folder.relative_to(ROOT)
            sys.stdout.write(
                f"{name!s:<24} {words:>6} words  what {1000 * what / words:5.1f}  where "
                f"{1000 * where / words:5.1f}\n"
            )
    sys.stdout.write(
        f"runs of {RUN} lines that stand in two files or more: {repeated_runs(ROOT / 'h2c_hf')}\n"
    )

"""Figures from a saved report, no model needed:
`h2c plot REPORT|FOLDER --theme light|dark|both --output DIR`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib

from ..atomic import atomic
from ..hints import next_commands
from ..reports.schema import load_report
from . import bridge, methods, questions
from .style import THEMES, WIDTH


FORMATS = ("png", "svg", "pdf")
# Or the same report would not give the same bytes.
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
# name of the file: (keys of the report that it needs, what draws it). "a.b" is b in a, "*" any; see `holds`.
FIGURES = {
    "accuracy": (["methods"], methods.accuracy),
    "latency": (["methods.*.ttft_ms_median"], methods.latency),
    "latency_parts": (["latency_parts"], methods.latency_parts),
    "output_lengths": (["output_lengths"], methods.output_lengths),
    "gates": (["gates.*.*"], bridge.gates),
    "gates_over_training": (["training.history.*.gate/*"], bridge.gates_over_training),
    "injection": (["injection"], bridge.injection),
    "layer_radar": (["gates.*.*", "injection"], bridge.layer_radar),
    "training": (["training.history.*.loss"], bridge.training),
    "subjects": (["by_subject"], questions.subjects),
    "categories": (["by_category"], questions.categories),
    "confusion": (["confusion"], questions.confusion),
    "probability_shift": (["probability_shift"], questions.probability_shift),
    "generations": (["examples"], questions.generations),
}


def holds(node, path: list[str]) -> bool:
    """Whether there is something at a path of keys (names, patterns, or indices of a list)."""
    if not path:
        return node is not None and node != [] and node != {}
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return any(holds(child, path[1:]) for key, child in items if fnmatchcase(str(key), path[0]))


def left_out(report: dict) -> dict[str, str]:
    """{figure that cannot be drawn: the key that the report lacks}."""
    lacks = {
        name: [key for key in keys if not holds(report, key.split("."))]
        for name, (keys, _) in FIGURES.items()
    }
    return {name: missing[0] for name, missing in lacks.items() if missing}


def draw(
    report: dict,
    directory: str | Path,
    themes: Iterable[str] = ("light",),
    formats: Iterable[str] = ("png",),
    dpi: int = 150,
    names: Iterable[str] = tuple(FIGURES),
) -> list[Path]:
    """Draw every figure (of `names`) that the report has the data for.

    Each is written atomically. The same report gives the same bytes.

    Returns:
        The paths: `<name>.png`, and `<name>-dark.png` in the dark theme.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [name for name in names if name not in left_out(report)]
    paths = []
    for name in drawn:
        for theme in themes:
            with matplotlib.rc_context(THEMES[theme].settings):
                figure = FIGURES[name][1](report, THEMES[theme])
                # A narrow figure is shown as wide as the others.
                finer = max(1, WIDTH / figure.get_figwidth())
                for suffix in formats:
                    path = directory / f"{name}{'' if theme == 'light' else f'-{theme}'}.{suffix}"
                    with atomic(path) as temporary_path:
                        figure.savefig(
                            temporary_path, format=suffix, dpi=dpi * finer, metadata=UNDATED.get(suffix)
                        )
                    paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """`h2c plot`."""
    from .parsers import plot

    options = plot().parse_args(arguments)
    report = load_report(options.report)
    output = options.output or options.report.parent / "figures"
    paths = draw(report, output, THEMES if options.theme == "both" else [options.theme], FORMATS)
    print(f"Drew {len(FIGURES) - len(left_out(report))} of {len(FIGURES)} figures:", *paths, sep="\n  ")
    for name, key in left_out(report).items():
        print(f"Left out {name}: the report has no {key}.")
    bridge_id = report.get("models", {}).get("bridge", {}).get("id", "DIR")
    next_commands(
        f"h2c push {bridge_id if Path(bridge_id).is_dir() else 'DIR'} USER/NAME --report {options.report} "
        "--dry_run"
    )
    return 0

"""One look for every figure: two themes, Okabe and Ito's palette with a marker and a hatch beside each
colour, and text that fits."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, takewhile

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from ..reports.page import CONTROLS, TITLES


# Okabe and Ito's palette: told apart by colour-blind readers. Markers and hatches serve greyscale print.
BLUE, SKY, GREEN, VERMILLION, ORANGE, PURPLE, YELLOW, GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7", "#F0E442", "#999999",
)  # fmt: skip
FONT = "DejaVu Sans"  # comes with matplotlib, so that a figure is the same on every machine
SIZE, SMALL = 10, 8.5  # points
WIDTH = 7.5  # inches, of a figure that need not be wider
COLUMN = 3.5  # inches, of a column of a paper


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    hatch: str = ""


@dataclass(frozen=True)
class Theme:
    """Colours of a page. `strong` and `pale`: a blue and a light colour that show on this paper."""

    name: str
    paper: str
    ink: str
    grid: str
    strong: str
    pale: str
    ramp: tuple[float, float]  # the part of the colour map that shows, as lines, on this paper

    @cached_property
    def settings(self) -> dict:
        """matplotlib's."""
        ink = dict.fromkeys(
            (
                "text.color",
                "axes.edgecolor",
                "axes.labelcolor",
                "axes.titlecolor",
                "xtick.color",
                "ytick.color",
                "hatch.color",
            ),
            self.ink,
        )
        return {
            **ink, "figure.facecolor": self.paper, "axes.facecolor": self.paper, "grid.color": self.grid,
            "legend.frameon": False, "font.family": FONT, "font.size": SIZE, "axes.titlesize": SIZE,
            "figure.titlesize": SIZE + 2, "legend.fontsize": SMALL, "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL, "axes.spines.top": False, "axes.spines.right": False,
            "axes.titlelocation": "left", "axes.axisbelow": True, "hatch.linewidth": 0.7,
            "lines.markersize": 5, "image.cmap": "cividis",
            # Questions hold dollar signs; the same report gives the same bytes.
            "text.parse_math": False, "svg.hashsalt": "h2c",
        }  # fmt: skip

    @cached_property
    def sequence(self) -> list[Look]:
        """Looks of things that have no look of their own, in order."""
        colors = (self.strong, ORANGE, GREEN, PURPLE, self.pale, VERMILLION, GREY)
        return [
            Look(*look)
            for look in zip(colors, "osD^vPX", ("", "//", "..", "\\\\", "xx", "--", "++"), strict=True)
        ]

    def looks(self, methods: Iterable[str]) -> dict[str, Look]:
        """{method: its look}, the same in every figure; an unknown method gets one of the rest."""
        known = {
            "receiver": Look(self.strong, "o", "/"), "h2c": Look(VERMILLION, "D"),
            "sharer": Look(GREEN, "^", ".."), "text_to_text": Look(PURPLE, "s", "//"),
            "text_to_text_answer": Look(PURPLE, "P", "\\\\"),
            "text_to_text_reasoning": Look(PURPLE, "X", "xx"), "shuffled": Look(GREY, "v", "--"),
            "zeros": Look(GREY, "<", "||"), "noise": Look(GREY, ">", "++"), "adapter": Look(GREY, "p", "oo"),
        }  # fmt: skip
        new = [name for name in methods if name not in known]
        markers = "*hHd8"
        hatches = ("///", "...", "\\\\\\", "xxx", "---")
        colors = (ORANGE, self.pale, SKY, ORANGE, self.pale)
        return known | {
            name: Look(colors[i % 5], markers[i % 5], hatches[i % 5]) for i, name in enumerate(new)
        }

    @cached_property
    def lines(self) -> LinearSegmentedColormap:
        """The colour map for lines: without the end that is lost on this paper."""
        return LinearSegmentedColormap.from_list("lines", colormaps["cividis"](np.linspace(*self.ramp, 64)))


THEMES = {
    "light": Theme(
        "light", paper="#FFFFFF", ink="#222222", grid="#DDDDDD", strong=BLUE, pale=SKY, ramp=(0.0, 0.85)
    ),
    "dark": Theme(
        "dark", paper="#16181D", ink="#E8E8E8", grid="#3A3D45", strong=SKY, pale=YELLOW, ramp=(0.3, 1.0)
    ),
}


# Text


def title(method: str) -> str:
    return TITLES.get(method, f"control: {method}" if method in CONTROLS else method.replace("_", " "))


@cache
def advance(character: str) -> float:
    """The width of a character, in its font's size."""
    font = get_font(findfont(FONT))
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


def inches(text: str, size: float = SIZE) -> float:
    """The width of a line of text."""
    return size / 72 * sum(map(advance, text))


def wrap(text: str, width: float, size: float = SIZE, lines: int = 3) -> str:
    """Text in so many lines of so many inches, with an ellipsis if it went on. Breaks long words."""
    made, rest = [], printable(" ".join(text.split()))
    while rest and len(made) < lines:
        widths = accumulate(inches(character, size) for character in rest)
        end = max(1, sum(1 for _ in takewhile(lambda reached: reached <= width, widths)))
        if end < len(rest) and " " in rest[: end + 1]:
            end = rest.rindex(" ", 0, end + 1)
        made.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        while made[-1] and inches(made[-1] + "…", size) > width:
            made[-1] = made[-1][:-1]
        made[-1] += "…"
    return "\n".join(made)


def printable(text: str) -> str:
    """With a box for each character that the font lacks."""
    font = get_font(findfont(FONT))
    return "".join(character if font.get_char_index(ord(character)) else "▯" for character in text)


def widest(names: Iterable[str], size: float = SMALL) -> float:
    """Inches of the widest line of several (wrapped) texts."""
    return max((inches(line, size) for name in names for line in name.split("\n")), default=0.0)


# Pieces of a figure


def page(heading: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure with its heading; height and width in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(wrap(heading, width - 0.3, SIZE + 2), x=0.1 / width, ha="left", weight="normal")
    return figure


def names(methods: Iterable[str], width: float = 1.9) -> list[str]:
    """The methods' titles, wrapped, for an axis or a legend."""
    return [wrap(title(method), width, SMALL) for method in methods]


BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.02), "borderaxespad": 0, "handlelength": 2.2}


def legend(axes: Axes) -> None:
    """To the right of the axes, outside."""
    axes.legend(**BESIDE)


def behind(theme: Theme) -> dict:
    """Return a box behind a text, in the paper's colour, so that a line does not strike it through."""
    return {"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}


def on_map(share: float) -> str:
    """The ink that shows on a colour map's colour, from its place on the map, 0 to 1."""
    return "#000000" if share > 0.5 else "#FFFFFF"


def plain_grid(axes: Axes, axis: str = "both") -> None:
    axes.grid(True, axis=axis, lw=0.6)
    axes.tick_params(length=0)

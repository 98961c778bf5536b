"""What a drawn figure shows, measured: its texts, its legends, its axes."""

import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox


UNIT = re.compile(r"%|\bms\b|\bnats\b|\btokens\b|\bsteps?\b")
UNITLESS = re.compile(r"\b(layer|gate|relative change|norm|rate|letter|token by token)\b|\|new - old\|")
TOLERANCE = 0.5  # pixels


class Drawn:
    """A figure on a canvas, and every text that was really drawn (ticks outside the axes are not)."""

    def __init__(self, figure: Figure, dpi: int = 60):
        self.figure, self.texts = figure, {}
        draw = Text.draw

        def recorded(text, renderer, *args, **kwargs):
            draw(text, renderer, *args, **kwargs)
            if text.get_visible() and text.get_text().strip():
                self.texts[text] = text.get_window_extent(renderer)

        figure.set_dpi(dpi)
        Text.draw = recorded
        try:
            figure.draw_without_rendering()
        finally:
            Text.draw = draw

    def problems(self) -> list[str]:
        return [*self.overlaps(), *self.outside(), *self.covered(), *self.without_unit(), *self.unreadable()]

    def overlaps(self):
        texts, boxes = list(self.texts), np.array([box.extents for box in self.texts.values()])
        low, high = boxes[:, None], boxes[None]
        shared = np.minimum(low[..., 2:], high[..., 2:]) - np.maximum(low[..., :2], high[..., :2])
        for one, other in np.argwhere(np.triu((shared > TOLERANCE).all(-1), 1)):
            yield f"{texts[one].get_text()!r} overlaps {texts[other].get_text()!r}"

    def outside(self):
        canvas = self.figure.bbox
        for text, box in self.texts.items():
            if (
                box.x0 < -TOLERANCE
                or box.y0 < -TOLERANCE
                or box.x1 > canvas.x1 + TOLERANCE
                or box.y1 > canvas.y1 + TOLERANCE
            ):
                yield f"{text.get_text()!r} leaves the canvas"

    def unreadable(self):
        """Markup that is shown as it stands, since the figures print dollar signs as they are."""
        return [text.get_text() for text in self.texts if "mathdefault" in text.get_text()]

    def covered(self):
        for legend in self.figure.findobj(Legend):
            for axes in self.figure.axes:
                if meet(legend.get_window_extent(), axes.get_window_extent()):
                    yield f"a legend covers the axes {axes.get_title(loc='left')!r}"

    def without_unit(self):
        """Labels that name no unit, and axes of numbers without a label."""
        shared = [text for text in (self.figure._supxlabel, self.figure._supylabel) if text is not None]
        labels = [axis.label for axes in self.figure.axes for axis in (axes.xaxis, axes.yaxis)] + shared
        for label in labels:
            if label in self.texts and not (
                UNIT.search(label.get_text()) or UNITLESS.search(label.get_text())
            ):
                yield f"{label.get_text()!r} names no unit"
        for direction, common in (("xaxis", self.figure._supxlabel), ("yaxis", self.figure._supylabel)):
            for axes in self.figure.axes:
                axis = getattr(axes, direction)
                ticks = [tick for tick in axis.get_ticklabels() if tick in self.texts]
                named = axis.label in self.texts or common is not None or axes.name == "polar"
                if any(re.search(r"^[\d.,e-]+$", tick.get_text()) for tick in ticks) and not named:
                    yield f"an axis of numbers, {ticks[0].get_text()} ..., has no label"


def meet(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > TOLERANCE and height > TOLERANCE

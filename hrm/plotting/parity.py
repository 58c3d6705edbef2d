"""Predicted against published or measured throughput: how far each point lies from the line of equality."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hrm.errors import HrmError
from hrm.plotting.label_spots import around
from hrm.plotting.labels import write_labels
from hrm.plotting.page import page_size, to_page
from hrm.plotting.style import COLOURS, SERIES, SERIES_MARKERS, fit_title, light_grid, style

BAND = 0.25  # shaded on either side of equality, relative to the published value
NAMED = 3  # points outside the band that are named, the worst first
MARKER_SIZE = 9.0  # points
MARGIN = 1.35  # factor between the outermost points and the ends of the axes


@dataclass(frozen=True)
class ParityPoint:
    """One published or measured throughput and its prediction, both in one unit; points of a group look the same."""

    label: str
    group: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over published, minus 1."""
        return self.predicted / self.published - 1

    @property
    def distance(self) -> float:
        """How far from equality, a factor of two too much being as far as one too little."""
        return abs(math.log(self.predicted / self.published))


def plot_parity(
    points: Sequence[ParityPoint],
    ax: Axes,
    x_name: str = "published (tokens/s)",
    y_name: str = "predicted (tokens/s)",
) -> Axes:
    """Log-log scatter with the line of equality and the band of +-25 %; names the three worst points outside it.

    Raises:
        HrmError: no point, a value that is not positive and finite, or more than eight groups.
    """
    groups = _groups(points)
    values = [v for p in points for v in (p.published, p.predicted)]
    low, high = min(values) / MARGIN, max(values) * MARGIN
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel=x_name, ylabel=y_name)
    ends = np.array([low, high])
    ax.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color="#DCE6EC", linewidth=0, zorder=0.5,
                    label=f"within {BAND:.0%}")  # fmt: skip
    ax.plot(ends, ends, color=COLOURS["muted"], linewidth=1.6, zorder=1)
    for group, colour, marker in zip(groups, SERIES, SERIES_MARKERS, strict=False):
        own = [p for p in points if p.group == group]
        ax.plot([p.published for p in own], [p.predicted for p in own], linestyle="", marker=marker, color=colour,
                markersize=MARKER_SIZE, markeredgecolor="white", markeredgewidth=0.8, label=group)  # fmt: skip
    light_grid(ax)
    _plain_ticks(ax, high / low)
    above = sum(p.error > 0 for p in _outside(points))
    crowded = 2 * above > len(_outside(points))
    legend = ax.legend(loc="lower right" if crowded else "upper left", borderaxespad=0.3, handletextpad=0.5)
    _name_worst(ax, points, legend)
    return ax


def parity_figure(
    points: Sequence[ParityPoint], x_name: str = "published (tokens/s)", y_name: str = "predicted (tokens/s)"
) -> Figure:
    """A square parity plot, with the median error in its title.

    Raises:
        HrmError: as `plot_parity`.
    """
    with style():
        figure = Figure(figsize=(7.6, 7.6))
        figure.subplots_adjust(left=0.125, right=0.97, top=0.925, bottom=0.08)
        ax = figure.subplots()
        plot_parity(points, ax, x_name, y_name)
        within = len(points) - len(_outside(points))
        middle = float(np.median([abs(p.error) for p in points]))
        fit_title(ax, f"median error {middle:.0%}; {within} of {len(points)} within {BAND:.0%}")
    return figure


def _groups(points: Sequence[ParityPoint]) -> list[str]:
    """Groups in order of appearance."""
    if not points:
        raise HrmError("parity: no point to draw; give at least one")
    for p in points:
        if not all(math.isfinite(v) and v > 0 for v in (p.published, p.predicted)):
            raise HrmError(
                f"parity: {p.label!r} has published {p.published} and predicted {p.predicted}; both must be positive"
            )
    groups = list(dict.fromkeys(p.group for p in points))
    if len(groups) > len(SERIES):
        raise HrmError(f"parity: {len(groups)} groups; at most {len(SERIES)} can be told apart, join some")
    return groups


def _name_worst(ax: Axes, points: Sequence[ParityPoint], legend: Legend) -> None:
    """Names outside the band, clear of the marks and the legend."""
    radius, colour = MARKER_SIZE / 2 + 1, COLOURS["text"]
    centres = [to_page(ax, p.published, p.predicted) for p in points]
    marks = [(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    labels = []
    for p in sorted(_outside(points), key=lambda p: -p.distance)[:NAMED]:
        side = (-1, 1) if p.error > 0 else (1, -1)
        labels.append(around(ax, f"{p.label} {p.error:+.0%}", colour, p.published, p.predicted, radius, side))
    write_labels(ax, labels, np.array([*marks, _legend_box(ax, legend)]))


def _outside(points: Sequence[ParityPoint]) -> list[ParityPoint]:
    return [p for p in points if abs(p.error) > BAND]


def _legend_box(ax: Axes, legend: Legend) -> tuple[float, float, float, float]:
    """Where the legend lies, in points from the lower left corner of the axes."""
    box = legend.get_window_extent()
    point = page_size(ax)[0] / ax.bbox.width
    left, bottom = (box.x0 - ax.bbox.x0) * point, (box.y0 - ax.bbox.y0) * point
    return left, bottom, left + box.width * point, bottom + box.height * point


def _plain_ticks(ax: Axes, span: float) -> None:
    """Numbers as they are read aloud, at 1, 2 and 5 of each decade where there are few decades."""
    subs = (1.0, 2.0, 5.0) if span < 1e3 else (1.0,)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()

"""Places point labels on log-log axes so that none covers another."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

Label = tuple[float, float, str, str]
"""(x, y, text, colour)"""

CHARACTER_WIDTH = 0.56  # of the font size, on average
LINE_HEIGHT = 1.45
CLEARANCE = 16.0  # points between a point and its label


Marker = tuple[float, float, float]
"""(x, y, width in points) of a drawn marker that labels must not cover"""


def spread_labels(ax: Axes, labels: list[Label], markers: Sequence[Marker] = (), fontsize: float = 10.5) -> None:
    """Writes each label right of its point, or left where the axes end, moved up or down until it is clear."""
    taken = [_marker_box(ax, marker) for marker in markers]
    for x, y, text, colour in sorted(labels, key=lambda label: -label[1]):
        px, py = _to_points(ax, x, y)
        width, height = len(text) * fontsize * CHARACTER_WIDTH, fontsize * LINE_HEIGHT
        right = px + CLEARANCE + width <= _width(ax)
        start = max(2.0, px + CLEARANCE if right else px - CLEARANCE - width)
        shift = _free_shift(start, py, width, height, taken)
        taken.append((start, py + shift, width, height))
        ax.annotate(
            text,
            (x, y),
            xytext=(start - px, shift),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=fontsize,
            color=colour,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.82},
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.8} if abs(shift) > height else None,
            zorder=7,
        )


def _free_shift(
    x: float, y: float, width: float, height: float, taken: list[tuple[float, float, float, float]]
) -> float:
    steps = [0.0]
    for i in range(1, 30):
        steps += [-i * height / 2, i * height / 2]
    for shift in steps:
        if all(not _overlap((x, y + shift, width, height), box) for box in taken):
            return shift
    return 0.0


def _marker_box(ax: Axes, marker: Marker) -> tuple[float, float, float, float]:
    x, y, width = marker
    px, py = _to_points(ax, x, y)
    return px - width / 2, py, width, width


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    apart_x = a[0] + a[2] < b[0] or b[0] + b[2] < a[0]
    return not (apart_x or abs(a[1] - b[1]) >= (a[3] + b[3]) / 2)


def _width(ax: Axes) -> float:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return float(ax.get_position().width * figure.get_size_inches()[0] * 72)


def _to_points(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """Position in points from the axes' lower left corner."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    height = ax.get_position().height * figure.get_size_inches()[1] * 72
    return (
        math.log(x / x0) / math.log(x1 / x0) * _width(ax),
        math.log(y / y0) / math.log(y1 / y0) * height,
    )

"""Positions on the page, in points (1/72 inch) from the lower left corner of the axes, and sizes of texts."""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Positions in points, [n, 2]."""

SAMPLE_STEP = 3.0
LINE_HEIGHT = 1.2  # of the font size


def to_page(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """One data position in points."""
    px, py = _to_points(ax, np.array([[x, y]], dtype=float))[0]
    return float(px), float(py)


def page_size(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in points."""
    figure = _dpi(ax)
    return ax.bbox.width * 72 / figure, ax.bbox.height * 72 / figure


def slope_angle(ax: Axes) -> float:
    """Degrees on the page of a line of slope 1 in log-log space."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    width, height = page_size(ax)
    return math.degrees(math.atan2(height / math.log10(y1 / y0), width / math.log10(x1 / x0)))


def sampled_lines(ax: Axes) -> Points:
    """Positions along every line drawn in the axes, about 3 points apart."""
    width, height = page_size(ax)
    parts = [np.empty((0, 2))]
    for line in ax.get_lines():
        corners = _to_points(ax, np.asarray(line.get_xydata(), dtype=float))
        for start, end in pairwise(corners):
            count = max(2, int(np.hypot(*(end - start)) / SAMPLE_STEP))
            parts.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    found: Points = np.concatenate(parts)
    inside = (found >= -1).all(axis=1) & (found[:, 0] <= width + 1) & (found[:, 1] <= height + 1)
    return found[inside]


@lru_cache(maxsize=4096)
def text_size(text: str, size: float, bold: bool) -> tuple[float, float]:
    """Width and height in points of a text of one or more lines."""
    font, lines = FontProperties(weight="bold" if bold else "normal"), text.split("\n")
    width = max(float(TextPath((0, 0), line, size=size, prop=font).get_extents().width) for line in lines)
    return width, size * LINE_HEIGHT * len(lines)


def _to_points(ax: Axes, data: Points) -> Points:
    pixels = ax.transData.transform(data) - ax.bbox.min
    points: Points = pixels * 72 / _dpi(ax)
    return points


def _dpi(ax: Axes) -> float:
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    return float(figure.dpi)

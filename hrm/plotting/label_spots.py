"""Where a label may stand: around a mark, along a slope, on a flat line, beside a vertical line."""

import math

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.labels import Label, Spot
from hrm.plotting.page import page_size, slope_angle, text_size, to_page
from hrm.plotting.style import LABEL_SIZE

GAP = 4.0
FAR = 110.0  # points between a mark and its label at most
COLUMNS, ROWS = 18, 18  # of the grid of spots around a mark
STEPS = 32
TWINS = 14.0  # points on the page within which a measured roof and its datasheet twin share their name
LIFTS = (2, 6, 14, 24, 34)  # points between a flat line and its name
OVERHANG = 50.0  # points by which a name may reach past the end of a short slope


def around(ax: Axes, text: str, colour: str, x: float, y: float, radius: float, prefer: tuple[int, int]) -> Label:
    """Anywhere near a mark of `radius` points at data (x, y), the closer the better, on the side `prefer` rather."""
    px, py = to_page(ax, x, y)
    width, height = text_size(text, LABEL_SIZE, True)
    least_x, least_y = width / 2 + radius + GAP, height / 2 + radius + GAP
    spots = []
    for dx in (*np.linspace(-least_x - FAR, least_x + FAR, COLUMNS), -least_x, least_x):
        for dy in (*np.linspace(-least_y - FAR, least_y + FAR, ROWS), -least_y, 0.0, least_y):
            away = math.hypot(max(0.0, abs(dx) - width / 2), max(0.0, abs(dy) - height / 2))
            if radius + GAP - 0.1 <= away <= FAR:
                aside = math.hypot(dx / least_x - prefer[0], dy / least_y - prefer[1])
                spots.append(Spot(px + dx, py + dy, away + 3 * aside))
    return Label(text, colour, tuple(spots), anchor=(px, py))


def along_slope(ax: Axes, text: str, colour: str, upper: float, lower: float, end: float) -> Label:
    """Along a roof of slope `lower` bytes/s up to intensity `end`; `upper` is its datasheet twin, or the same."""
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    width, height = text_size(text, LABEL_SIZE, True)
    angle = slope_angle(ax)
    across, along = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    spots = []
    for value, side, worse in _sides(ax, upper, lower):
        first, last = max(low, bottom / value), min(end, high, top / value)
        start, stop = to_page(ax, first, value * first), to_page(ax, last, value * last)
        length = math.dist(start, stop)
        for i in range(STEPS):
            middle = 6 + width / 2 + i / (STEPS - 1) * max(OVERHANG, length - width - 12)
            off = side * (height / 2 + 2.5)
            x, y = start[0] + across * middle - along * off, start[1] + along * middle + across * off
            spots.append(Spot(x, y, i * 1.5 + worse))
    return Label(text, colour, tuple(spots), angle)


def _sides(ax: Axes, upper: float, lower: float) -> list[tuple[float, int, float]]:
    """(line, side, cost): the measured line first, since the number is its; above the datasheet's only if close by."""
    if upper == lower:
        return [(lower, 1, 0.0), (lower, -1, 8.0)]
    apart = to_page(ax, ax.get_xlim()[0], upper)[1] - to_page(ax, ax.get_xlim()[0], lower)[1]
    if apart < TWINS:
        return [(lower, -1, 0.0), (upper, 1, 10.0)]
    return [(lower, -1, 0.0), (lower, 1, 4.0), (upper, 1, 60.0)]


def on_flat(ax: Axes, text: str, colour: str, upper: float, lower: float, start: float) -> Label:
    """On a flat roof at `lower` flop/s from intensity `start` on; `upper` is its datasheet twin, or the same."""
    width, height = text_size(text, LABEL_SIZE, True)
    right = page_size(ax)[0]
    spots = []
    for value, side, worse in _sides(ax, upper, lower):
        left, y = to_page(ax, start, value)
        for i in range(STEPS):
            x = right - 4 - width / 2 - i / (STEPS - 1) * max(0.0, right - left - width - 8)
            cost = i * 1.5 + worse
            spots += [Spot(x, y + side * (height / 2 + up), cost + up) for up in LIFTS]
    return Label(text, colour, tuple(spots))


def beside_vertical(ax: Axes, text: str, colour: str, x: float, top: float) -> Label:
    """Upright along a vertical line at intensity `x` that ends at `top`, from the bottom up."""
    px, end = to_page(ax, x, top)
    width, height = text_size(text, LABEL_SIZE, True)
    spots = []
    for side in (1, -1):
        for i in range(STEPS):
            y = 6 + width / 2 + i / (STEPS - 1) * max(0.0, end - width - 12)
            cost = i * 2.0 + (0 if side > 0 else 5)
            spots += [Spot(px + side * (height / 2 + off), y, cost + off) for off in (1, 8)]
    return Label(text, colour, tuple(spots), 90.0)

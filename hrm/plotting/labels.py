"""Writes labels on axes so that none covers another label, a marker or, where possible, a line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from hrm.plotting.page import Points, page_size, sampled_lines, text_size
from hrm.plotting.style import COLOURS, LABEL_SIZE

Boxes = NDArray[np.float64]
"""Rectangles (left, bottom, right, top) in points, [n, 4]."""

# What a spot costs, against one per point of distance to the mark.
OUTSIDE, TEXT_ON_TEXT, TEXT_ON_MARKER, TEXT_ON_LEADER = 1e5, 1000.0, 800.0, 300.0
LEADER_ON_MARKER, LEADER, TEXT_ON_LINE = 60.0, 8.0, 5.0  # the last per 3 points of line
PASSES = 6
LEADER_FROM = 20.0  # points between a mark and its label from which a thin line joins them
PADDING = 2.0


@dataclass(frozen=True)
class Spot:
    """A place for a label: its centre in points from the axes' lower left corner, and how unwelcome the place is."""

    x: float
    y: float
    cost: float


@dataclass(frozen=True)
class Label:
    """A text with the spots where it may stand; `anchor` is the mark it names, if it may need a line to it."""

    text: str
    colour: str
    spots: tuple[Spot, ...]
    angle: float = 0.0
    bold: bool = True
    anchor: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cover:
    """What a label covers at one spot: its text, and the line to its mark (empty where there is none)."""

    text: Boxes
    leader: Boxes


def write_labels(ax: Axes, labels: Sequence[Label], markers: Boxes) -> None:
    """Chooses a spot for every label, the first ones first, reconsiders each, and writes them."""
    covers = [[_cover(label, spot) for spot in label.spots] for label in labels]
    chosen = choose_spots(labels, covers, markers, sampled_lines(ax), page_size(ax))
    for label, k, options in zip(labels, chosen, covers, strict=True):
        _write(ax, label, label.spots[k], options[k].text)


def choose_spots(
    labels: Sequence[Label], covers: list[list[Cover]], markers: Boxes, lines: Points, size: tuple[float, float]
) -> list[int]:
    """Index of the spot of each label: the cheapest given all others, settled from a few different orders."""
    fixed = [
        [_fixed_cost(cover, markers, lines, size) + spot.cost for cover, spot in zip(options, label.spots, strict=True)]
        for options, label in zip(covers, labels, strict=True)
    ]
    orders = (
        range(len(labels)),
        range(len(labels) - 1, -1, -1),
        sorted(range(len(labels)), key=lambda i: len(covers[i])),
    )
    return min((_settle(covers, fixed, order) for order in orders), key=lambda found: found[0])[1]


def _settle(covers: list[list[Cover]], fixed: list[list[float]], order: Sequence[int]) -> tuple[float, list[int]]:
    """Total cost and the spots found when each label in `order` repeatedly takes its cheapest spot."""
    chosen: dict[int, int] = {}
    total = 0.0
    for _ in range(PASSES):
        before, total = dict(chosen), 0.0
        for i in order:
            others = [covers[j][k] for j, k in chosen.items() if j != i]
            texts, leaders = _joined([c.text for c in others]), _joined([c.leader for c in others])
            costs = [b + _shared_cost(c, texts, leaders) for b, c in zip(fixed[i], covers[i], strict=True)]
            chosen[i] = int(np.argmin(costs))
            total += costs[chosen[i]]
        if chosen == before:
            break
    return total, [chosen[i] for i in range(len(covers))]


def _shared_cost(cover: Cover, texts: Boxes, leaders: Boxes) -> float:
    crossings = _overlaps(cover.text, leaders) + _overlaps(cover.leader, texts)
    return TEXT_ON_TEXT * _overlaps(cover.text, texts) + TEXT_ON_LEADER * min(crossings, 2)


def _fixed_cost(cover: Cover, markers: Boxes, lines: Points, size: tuple[float, float]) -> float:
    boxes = cover.text
    outside = bool((boxes[:, :2] < 0).any() or (boxes[:, 2] > size[0]).any() or (boxes[:, 3] > size[1]).any())
    inside = ((lines[:, None, :] > boxes[None, :, :2]) & (lines[:, None, :] < boxes[None, :, 2:])).all(axis=2)
    cost = OUTSIDE * outside + TEXT_ON_LINE * int(np.count_nonzero(np.logical_or.reduce(inside, axis=1)))
    cost += TEXT_ON_MARKER * _overlaps(boxes, markers) + LEADER_ON_MARKER * _overlaps(cover.leader, markers)
    return cost + LEADER * bool(len(cover.leader))


def _joined(parts: list[Boxes]) -> Boxes:
    return np.concatenate(parts) if parts else np.empty((0, 4))


def _overlaps(boxes: Boxes, taken: Boxes) -> int:
    if not len(taken) or not len(boxes):
        return 0
    low = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], taken[None, :, 2:])
    return int((low < high).all(axis=2).any(axis=0).sum())


def _cover(label: Label, spot: Spot) -> Cover:
    text = _text_boxes(label, spot)
    leader = _leader(label, text)
    if leader is None:
        return Cover(text, np.empty((0, 4)))
    start, end = leader
    length = float(np.hypot(*(end - start)))
    steps = np.arange(LEADER_FROM * 0.6, length, 5.0) / length  # from past the mark itself
    along = start + steps[:, None] * (end - start)
    return Cover(text, np.concatenate([along - 1.5, along + 1.5], axis=1))


def _leader(label: Label, text: Boxes) -> tuple[Points, Points] | None:
    """From the mark to the nearest edge of its label, where that is far enough to need a line."""
    if label.anchor is None:
        return None
    start = np.array(label.anchor)
    end = np.clip(start, text[0, :2], text[0, 2:])
    return (start, end) if np.hypot(*(end - start)) > LEADER_FROM else None


def _text_boxes(label: Label, spot: Spot) -> Boxes:
    """One box, or a chain of small ones along a slanted text."""
    width, height = text_size(label.text, LABEL_SIZE, label.bold)
    across, along = np.cos(np.radians(label.angle)), np.sin(np.radians(label.angle))
    if abs(across) < 1e-6 or abs(along) < 1e-6:
        half = np.array([width, height] if abs(along) < 1e-6 else [height, width]) / 2 + PADDING
        return np.array([[spot.x - half[0], spot.y - half[1], spot.x + half[0], spot.y + half[1]]])
    steps = np.linspace(-width / 2, width / 2, max(2, round(width / 6)))
    x, y, half_size = spot.x + steps * across, spot.y + steps * along, height / 2 * 0.8
    return np.stack([x - half_size, y - half_size, x + half_size, y + half_size], axis=1)


def _write(ax: Axes, label: Label, spot: Spot, text: Boxes) -> None:
    leader = _leader(label, text)
    if leader is not None:
        arrow = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 1.0}
        (x0, y0), (x1, y1) = leader
        ax.annotate(
            "", (x0, y0), xytext=(x1, y1), xycoords="axes points", textcoords="axes points", arrowprops=arrow, zorder=3
        )
    ax.annotate(
        label.text, (spot.x, spot.y), xycoords="axes points", ha="center", va="center", rotation=label.angle,
        rotation_mode="anchor", color=label.colour, fontsize=LABEL_SIZE, zorder=8,
        fontweight="bold" if label.bold else "normal", path_effects=[withStroke(linewidth=3.5, foreground="white")],
    )  # fmt: skip

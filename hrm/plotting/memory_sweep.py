"""Throughput against the size of a memory, a line per schedule: Fig. 1 of the MoE-Lightning paper, and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from hrm.errors import HrmError
from hrm.plotting.page import page_size, text_size
from hrm.plotting.style import COLOURS, LABEL_SIZE, SERIES, SERIES_MARKERS, light_grid

if TYPE_CHECKING:
    import pandas as pd

GIB = 2.0**30
FIELDS = {"cpu_memory": "usable CPU memory (GiB)", "gpu_memory": "usable GPU memory (GiB)"}
LEAST_GAP = 17.0  # points between the names of two lines
End = tuple[float, float, str, str]


def plot_memory_sweep(tables: dict[str, pd.DataFrame], ax: Axes, field: str = "cpu_memory") -> Axes:
    """One line per entry of `tables` (label -> result of `sweep` over `field` in bytes); gaps where nothing fits.

    Each line is named at its right end, inside the axes; a line that fits nowhere is named as such.

    Raises:
        HrmError: a field that is no memory, no table, or more than eight.
    """
    if field not in FIELDS:
        raise HrmError(f"memory sweep: field {field!r} is no memory; choose {' or '.join(FIELDS)}")
    if not 1 <= len(tables) <= len(SERIES):
        raise HrmError(f"memory sweep: {len(tables)} lines; give 1 to {len(SERIES)}")
    ends, missing = [], []
    for (label, table), colour, marker in zip(tables.items(), SERIES, SERIES_MARKERS, strict=False):
        y = table["generation_throughput"].where(table["feasible"]) if "generation_throughput" in table else None
        if y is None or y.isna().all():
            missing.append(label)
            continue
        x, last = table[field] / GIB, y.last_valid_index()
        ax.plot(x, y, linestyle="-", marker=marker, color=colour, linewidth=2.8, markersize=7, label=label)
        ends.append((float(x[last]), float(y[last]), label, colour))
    light_grid(ax)
    ax.set(xlabel=FIELDS[field], ylabel="generation throughput (tokens/s)")
    ax.set_ylim(bottom=0)
    _name_ends(ax, ends)
    if missing:
        ax.text(0.02, 0.97, f"fits nowhere: {', '.join(missing)}", transform=ax.transAxes, va="top",
                color=COLOURS["muted"], fontsize=LABEL_SIZE)  # fmt: skip
    return ax


def _name_ends(ax: Axes, ends: list[End]) -> None:
    """Widens the x axis to hold the names and pushes apart those of lines that end close together."""
    if not ends:
        return
    low, high = ax.get_xlim()
    width, height = page_size(ax)
    room = max(text_size(label, LABEL_SIZE, True)[0] for *_, label, _ in ends) + 14
    last = max(end[0] for end in ends)
    ax.set_xticks([tick for tick in ax.get_xticks() if low <= tick <= last])
    ax.set_xlim(low, low + (high - low) * width / max(width - room, width / 4))
    least = (ax.get_ylim()[1] - ax.get_ylim()[0]) * LEAST_GAP / height
    ordered = sorted(ends, key=_rate)
    for at, (x, y, label, colour) in zip(_apart([end[1] for end in ordered], least), ordered, strict=True):
        ax.annotate(label, (x, y), xytext=(12, (at - y) / least * LEAST_GAP), textcoords="offset points", va="center",
                    color=colour, fontsize=LABEL_SIZE, fontweight="bold")  # fmt: skip


def _rate(end: End) -> float:
    return end[1]


def _apart(values: list[float], least: float) -> list[float]:
    """`values` ascending, moved as little as their order allows until neighbours are `least` apart, none below 0."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _span(groups[-2], least)[1] + least > _span(groups[-1], least)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_span(group, least)[0] + i * least for group in groups for i in range(len(group))]


def _span(group: list[float], least: float) -> tuple[float, float]:
    """Lowest and highest position of a group spread around its mean."""
    length = (len(group) - 1) * least
    low = max(sum(group) / len(group) - length / 2, 0.0)
    return low, low + length

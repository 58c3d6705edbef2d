"""Throughput against memory, a line per schedule, as in the first figure of the MoE-Lightning paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from hrm.plotting.style import SERIES, light_grid

if TYPE_CHECKING:
    import pandas as pd

GIB = 2.0**30


def plot_memory_sweep(tables: dict[str, pd.DataFrame], ax: Axes, field: str = "cpu_memory") -> Axes:
    """One line per entry of `tables` (label -> result of `sweep` over `field` in bytes); gaps where nothing fits."""
    ends = []
    for (label, table), colour in zip(tables.items(), SERIES, strict=False):
        feasible = table[table["feasible"]]
        if feasible.empty:
            continue
        x, y = feasible[field] / GIB, feasible["generation_throughput"]
        ax.plot(x, y, "-o", color=colour, linewidth=2.4, markersize=5)
        ends.append((float(x.iloc[-1]), float(y.iloc[-1]), label, colour))
    light_grid(ax)
    ax.set_xlabel(f"usable {field.split('_')[0].upper()} memory (GiB)")
    ax.set_ylabel("generation throughput (tokens/s)")
    ax.set_ylim(bottom=0)
    _label_ends(ax, ends)
    return ax


def _label_ends(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names each line at its right end, pushed apart where lines end close together."""
    least = (ax.get_ylim()[1] - ax.get_ylim()[0]) * 0.045
    previous = -float("inf")
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, previous + least)
        previous = at
        ax.annotate(label, (x, at), xytext=(9, 0), textcoords="offset points", va="center", color=colour, fontsize=11,
                    fontweight="bold", annotation_clip=False)  # fmt: skip

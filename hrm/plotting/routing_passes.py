"""What the passes of a routing trace need: distinct experts, reuse, and hit rates of caches."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from hrm.plotting.style import COLOURS, LABEL_SIZE, SERIES, SERIES_MARKERS, fit_title, light_grid
from hrm.predict.routing_hit_rates import HitRates
from hrm.predict.routing_reuse import ReuseDistance
from hrm.predict.routing_stats import RoutingStats

LINES = {
    "belady": (COLOURS["text"], "Belady (knows the trace)"),
    "predictive": (SERIES[1], "predictive"),
    "static": (SERIES[2], "static-hot (knows the trace)"),
    "lfu": (SERIES[3], "LFU"),
    "lru": (SERIES[0], "LRU"),
}  # the topmost first


def plot_distinct_experts(stats: RoutingStats, ax: Axes) -> Axes:
    """Distinct experts per layer and pass against batch size: measured, with the range over layers; two formulas."""
    sizes = [d.batch_size for d in stats.distinct]
    measured = np.array([d.measured for d in stats.distinct])  # [sizes, layers]
    ax.fill_between(sizes, measured.min(axis=1), measured.max(axis=1), color="#DCE6EC", linewidth=0,
                    label="measured, range of layers")  # fmt: skip
    ax.plot(sizes, measured.mean(axis=1), "-o", color=COLOURS["cpu"], linewidth=2.8, markersize=8, label="measured")
    independent = [float(np.mean(d.independent)) for d in stats.distinct]
    ax.plot(sizes, independent, "--s", color=COLOURS["htod"], linewidth=2.0, markersize=6, label="independent tokens")
    uniform = [d.uniform for d in stats.distinct]
    ax.plot(sizes, uniform, ":", color=COLOURS["muted"], linewidth=2.4, label="independent, all experts alike")
    _log_sizes(ax, sizes)
    light_grid(ax)
    ax.set_ylim(0, stats.num_experts * 1.03)
    ax.set(xlabel="batch size (sequences)", ylabel=f"distinct experts of {stats.num_experts}")
    ax.legend(loc="upper left", fontsize=LABEL_SIZE)
    last = stats.distinct[-1]
    share = float(np.mean(last.measured)) / stats.num_experts
    fit_title(ax, f"{stats.model}: a batch of {last.batch_size} touches {share:.0%} of the experts")
    return ax


def plot_reuse_distance(stats: RoutingStats, ax: Axes) -> Axes:
    """Share of repeated uses within so many passes, a line per batch size; dashed: of independent tokens."""
    for reuse, colour, marker in zip(stats.reuse, SERIES, SERIES_MARKERS, strict=False):
        _plot_reuse(ax, reuse, colour, marker)
    ax.plot([], [], "--", color=COLOURS["muted"], linewidth=1.8, label="independent tokens")
    _log_sizes(ax, [d for d in stats.reuse[0].distances if d <= 256])
    light_grid(ax)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(xlabel="passes since the expert's last use, at most", ylabel="share of repeated uses")
    ax.legend(loc="lower right", fontsize=LABEL_SIZE)
    first = stats.reuse[0]
    title = f"batch {first.batch_size}: {first.within[0]:.0%} of the experts were used in the pass before"
    fit_title(ax, f"{stats.model}, {title}")
    return ax


def plot_hit_rates(hits: Sequence[HitRates], num_experts: int, ax: Axes) -> Axes:
    """Hit rate against slots per layer, a line per policy, at one batch size.

    Above Belady's no cache can be that copies an expert when it is missed; one that prefetches can.
    """
    for policy, (colour, name) in LINES.items():
        for each in (h for h in hits if h.policy == policy):
            style, marker = ("--", "") if policy == "belady" else ("-", "o")
            ax.plot(np.array(each.slots) / num_experts, each.hit_rate, style, marker=marker, color=colour,
                    linewidth=2.4, markersize=6, label=name)  # fmt: skip
    light_grid(ax)
    ax.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="slots per layer, share of its experts", ylabel="hit rate")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    fit_title(ax, f"batch {hits[0].batch_size:,}")
    return ax


def _plot_reuse(ax: Axes, reuse: ReuseDistance, colour: str, marker: str) -> None:
    ax.plot(reuse.distances, reuse.within, "-", marker=marker, color=colour, linewidth=2.4, markersize=7,
            label=f"batch {reuse.batch_size:,}")  # fmt: skip
    ax.plot(reuse.distances, reuse.independent, "--", color=colour, linewidth=1.8)


def _log_sizes(ax: Axes, sizes: Sequence[int]) -> None:
    """Powers of two as plain numbers."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(sizes) * 0.93, max(sizes) * 1.07)
    low, high = (size.bit_length() - 1 for size in (min(sizes), max(sizes)))
    ax.xaxis.set_major_locator(FixedLocator([2**i for i in range(low, high + 1)]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())

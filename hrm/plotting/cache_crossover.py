"""Throughput of expert caches and of streaming against the batch size, with the point where they cross."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from hrm.plotting.style import COLOURS, LABEL_SIZE, SERIES, SERIES_MARKERS, fit_title, light_grid, style
from hrm.search.cached import CACHE_NAMES
from hrm.search.crossover import Crossover
from hrm.spec.policy import ExpertCacheMode

ABOVE = 1.6  # of the highest line: room for the key


def crossover_figure(result: Crossover) -> Figure:
    """The plot as a figure of its own."""
    with style():
        figure = Figure(figsize=(9.6, 6.0))
        figure.subplots_adjust(left=0.1, right=0.97, top=0.91, bottom=0.115)
        plot_crossover(result, figure.subplots())
    return figure


def plot_crossover(result: Crossover, ax: Axes) -> Axes:
    """A line per kind of cache and one for streaming, both axes logarithmic; gaps where nothing fits."""
    sizes = [point.batch_size for point in result.points]
    streaming = [point.streaming_throughput or float("nan") for point in result.points]
    ax.plot(sizes, streaming, "-o", color=COLOURS["text"], linewidth=3.2, markersize=8, label="streaming")
    modes = [mode for mode in CACHE_NAMES if any(mode in point.cached for point in result.points)]
    for mode, colour, marker in zip(modes, SERIES, SERIES_MARKERS[1:], strict=False):
        rates = [
            point.cached[mode].generation_throughput if mode in point.cached else float("nan")
            for point in result.points
        ]
        ax.plot(sizes, rates, linestyle="-", marker=marker, color=colour, linewidth=2.2, markersize=7,
                label=_label(mode, result))  # fmt: skip
    _log_axes(ax, sizes)
    light_grid(ax)
    _mark_crossing(ax, result.batch_size)
    ax.set(xlabel="batch size (sequences)", ylabel="generation throughput (tokens/s)")
    ax.legend(loc="upper left", fontsize=LABEL_SIZE)
    fit_title(ax, f"{result.rates.model.name} on {result.rates.machine.profile.name}: {_headline(result)}")
    return ax


def _label(mode: ExpertCacheMode, result: Crossover) -> str:
    perfect = mode == "predictive" and result.predicts_perfectly
    return f"{CACHE_NAMES[mode]} (always right)" if perfect else CACHE_NAMES[mode]


def _log_axes(ax: Axes, sizes: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.set_ylim(top=ax.get_ylim()[1] * ABOVE)


def _mark_crossing(ax: Axes, at: float | None) -> None:
    if at is None:
        return
    ax.axvline(at, color=COLOURS["mark"], linewidth=2.0, linestyle=(0, (4, 2)), zorder=1)
    low, high = ax.get_xlim()
    left = at * at > low * high  # of the line there is more room
    ax.annotate(f"streaming is faster from {at:,.0f} on", (at, 0.03), xycoords=("data", "axes fraction"),
                xytext=(-8 if left else 8, 0), textcoords="offset points", ha="right" if left else "left",
                color=COLOURS["text"], fontsize=LABEL_SIZE)  # fmt: skip


def _headline(result: Crossover) -> str:
    if result.batch_size is not None:
        return f"caches pay below {result.batch_size:,.0f} sequences"
    last = result.points[-1]
    return "a cache is faster" if last.cached_throughput > last.streaming_throughput else "streaming is faster"

"""The figures of `hrm routing`, one by one."""

from collections.abc import Iterator
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrm.plotting.routing_experts import plot_routing_heatmap, plot_routing_skew
from hrm.plotting.routing_passes import plot_distinct_experts, plot_hit_rates, plot_reuse_distance
from hrm.plotting.style import style
from hrm.predict.routing_stats import RoutingStats

COLUMNS = 3  # panels side by side
_SINGLE = {
    "routing_heatmap": plot_routing_heatmap,
    "routing_skew": plot_routing_skew,
    "routing_distinct_experts": plot_distinct_experts,
    "routing_reuse_distance": plot_reuse_distance,
}


def routing_figures(stats: RoutingStats) -> Iterator[tuple[str, Figure]]:
    """Name and figure: heatmap, skew, distinct experts, reuse distance, hit rates."""
    for name, plot in _SINGLE.items():
        with style():
            figure = Figure(figsize=(9.6, 6.0))
            figure.subplots_adjust(left=0.095, right=0.97, top=0.91, bottom=0.115)
            plot(stats, figure.subplots())
        yield name, figure
    yield "routing_hit_rates", hit_rate_figure(stats)


def hit_rate_figure(stats: RoutingStats) -> Figure:
    """All policies, a panel per batch size, with one key below."""
    sizes = list(dict.fromkeys(hits.batch_size for hits in stats.hits))
    columns, rows = min(len(sizes), COLUMNS), ceil(len(sizes) / COLUMNS)
    width, height = max(9.6, 5.2 * columns), 4.9 * rows + 0.9
    with style():
        figure = Figure(figsize=(width, height))
        panels: list[Axes] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        figure.subplots_adjust(left=0.95 / width, right=1 - 0.3 / width, top=1 - 0.5 / height, bottom=1.35 / height,
                               wspace=0.27, hspace=0.36)  # fmt: skip
        for size, ax in zip(sizes, panels, strict=False):
            plot_hit_rates([hits for hits in stats.hits if hits.batch_size == size], stats.num_experts, ax)
        for ax in panels[len(sizes) :]:
            ax.remove()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3 if width < 12 else len(labels),
                      columnspacing=1.6, handletextpad=0.5)  # fmt: skip
    return figure

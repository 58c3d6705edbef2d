"""Which experts a routing trace uses: a map over layers and experts, and how few serve most choices."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hrm.plotting.style import COLOURS, HEAT, LABEL_SIZE, SERIES, fit_title, light_grid
from hrm.predict.routing_skew import zipf_shares
from hrm.predict.routing_stats import RoutingStats


def plot_routing_heatmap(stats: RoutingStats, ax: Axes) -> Axes:
    """How many times an even share each expert gets, layer by layer; the hottest expert is marked."""
    even = stats.top_k / stats.num_experts
    relative = stats.frequency / even
    mesh = ax.pcolormesh(np.arange(stats.num_experts + 1) - 0.5, np.arange(len(relative) + 1) - 0.5, relative,
                         cmap=HEAT, vmin=0.0, rasterized=True, label="share")  # fmt: skip
    layer, expert = np.unravel_index(int(relative.argmax()), relative.shape)
    ax.plot(expert, layer, "*", color=COLOURS["mark"], markersize=20, markeredgecolor="black", label="hottest")
    ax.set(xlabel="expert", ylabel="MoE layer")
    ax.set_ylim(len(relative) - 0.5, -0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.colorbar(mesh, ax=ax, label="tokens that choose it (1 = even share)", pad=0.02)
    fit_title(ax, f"{stats.model}: layer {layer} sends expert {expert} {relative.max():.1f}x an even share")
    return ax


def plot_routing_skew(stats: RoutingStats, ax: Axes) -> Axes:
    """Share of the choices that the most used experts serve: a thin line per layer, their mean, Zipf's law, even."""
    experts = stats.num_experts
    x = np.arange(experts + 1) / experts
    ranked = np.sort(stats.frequency / stats.frequency.sum(axis=1, keepdims=True), axis=1)[:, ::-1]
    lines = np.concatenate([np.zeros((len(ranked), 1)), np.cumsum(ranked, axis=1)], axis=1)
    for i, line in enumerate(lines):
        ax.plot(x, line, color=SERIES[5], linewidth=1.2, alpha=0.8, label="" if i else "each layer")
    ax.plot(x, lines.mean(axis=0), color=COLOURS["cpu"], linewidth=3.0, label="mean over layers")
    exponent = float(np.median([layer.zipf_exponent for layer in stats.skew]))
    zipf = np.concatenate([[0.0], np.cumsum(zipf_shares(experts, stats.top_k, exponent))])
    ax.plot(x, zipf, "--", color=COLOURS["htod"], linewidth=2.2, label=f"Zipf, S = {exponent:.2f} (median)")
    ax.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=2.0, label="even routing")
    light_grid(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="experts of a layer, the most used first", ylabel="choices they serve")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(loc="lower right", fontsize=LABEL_SIZE)
    quarter = float(np.mean([layer.top[1] for layer in stats.skew]))
    fit_title(ax, f"{stats.model}: a quarter of the experts serves {quarter:.0%} of the choices")
    return ax

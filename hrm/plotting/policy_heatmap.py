"""Throughput over (mu, N) with what does not fit hatched and the optimum marked."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from hrm.plotting.style import COLOURS, HEAT, LABEL_SIZE, fit_title
from hrm.search.heatmap import Heatmap


def plot_policy_heatmap(heatmap: Heatmap, ax: Axes) -> Axes:
    """Log-log map of the best throughput per cell; hatched where memory does not suffice, blank where mu exceeds N."""
    x, y = _edges(heatmap.micro_batch_sizes), _edges(heatmap.batch_sizes)
    values = np.where(np.isfinite(heatmap.throughput), heatmap.throughput, np.nan)
    mesh = ax.pcolormesh(x, y, values, cmap=HEAT, vmin=0.0, rasterized=True, label="throughput")
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.set_xlabel("micro-batch size mu (sequences)")
    ax.set_ylabel("batch size N (sequences)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(EngFormatter(sep=" "))
    ax.minorticks_off()
    _hatch(ax, heatmap, x, y)
    _mark_optimum(ax, heatmap)
    ax.text(0.97, 0.04, "mu above N", transform=ax.transAxes, ha="right", color=COLOURS["muted"], fontsize=LABEL_SIZE)
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.colorbar(mesh, ax=ax, label="generation throughput (tokens/s)", pad=0.02)
    fit_title(ax, heatmap.title)
    return ax


def _hatch(ax: Axes, heatmap: Heatmap, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Grey hatching over cells where nothing fits, named in the topmost row."""
    full = np.isneginf(heatmap.throughput)
    if not full.any():
        return
    ax.pcolor(x, y, np.where(full, 0.0, np.nan), hatch="///", facecolor="none", edgecolor="#A0A0A0", cmap="Greys",
              vmin=0.0, vmax=1.0, linewidth=0.0, label="does not fit")  # fmt: skip
    rows = np.flatnonzero(full[:, 0])
    if not len(rows):
        return
    height = float(np.sqrt(y[rows[0]] * y[rows[-1] + 1]))
    ax.text(x[0] * 1.4, height, "does not fit in memory", va="center", fontsize=LABEL_SIZE, fontweight="bold",
            color=COLOURS["text"], path_effects=[withStroke(linewidth=5, foreground="white")])  # fmt: skip


def _mark_optimum(ax: Axes, heatmap: Heatmap) -> None:
    mu, n, best = heatmap.best
    ax.plot(mu, n, "*", color=COLOURS["mark"], markersize=22, markeredgecolor="black", markeredgewidth=1.2, zorder=5,
            label="optimum")  # fmt: skip
    text = f"optimum: {best:,.0f} tokens/s\nN = {n:,}, mu = {mu:,}"
    right = np.log(mu / ax.get_xlim()[0]) < 0.5 * np.log(ax.get_xlim()[1] / ax.get_xlim()[0])
    ax.annotate(text, (mu, n), xytext=(0 if right else 12, -18), textcoords="offset points", va="top",
                ha="left" if right else "right", fontsize=LABEL_SIZE + 1, fontweight="bold", color="black",
                path_effects=[withStroke(linewidth=4, foreground="white")])  # fmt: skip


def _edges(centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cell borders halfway between centres on the log scale; a single centre gets a cell from 0.7 to 1.4 times it."""
    logs = np.log(centres.astype(float))
    inner = (logs[1:] + logs[:-1]) / 2
    low, high = (logs[0] - inner[0], inner[-1] - logs[-1]) if len(logs) > 1 else (0.35, -0.35)
    edges: NDArray[np.float64] = np.exp(np.concatenate([[logs[0] - abs(low)], inner, [logs[-1] + abs(high)]]))
    return edges

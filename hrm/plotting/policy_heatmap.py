"""Throughput over (mu, N) with what does not fit hatched and the optimum marked."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from hrm.plotting.style import COLOURS, HEAT
from hrm.search.heatmap import Heatmap


def plot_policy_heatmap(heatmap: Heatmap, ax: Axes) -> Axes:
    """Log-log map; hatched where memory does not suffice, blank where mu would exceed N."""
    x, y = _edges(heatmap.micro_batch_sizes), _edges(heatmap.batch_sizes)
    fits = np.isfinite(heatmap.throughput)
    mesh = ax.pcolormesh(x, y, np.where(fits, heatmap.throughput, np.nan), cmap=HEAT, rasterized=True)
    infeasible = np.where(np.isneginf(heatmap.throughput), 0.0, np.nan)
    if np.isfinite(infeasible).any():
        ax.pcolor(x, y, infeasible, hatch="///", facecolor="#f4f4f4", edgecolor="#b0b0b0", cmap="Greys", alpha=0.35,
                  linewidth=0.0)  # fmt: skip
        row = np.flatnonzero(np.isneginf(heatmap.throughput).any(axis=1))[-1]
        ax.annotate("does not fit in memory", (x[0] * 1.3, np.sqrt(y[row] * y[row + 1])), va="center", fontsize=11,
                    color=COLOURS["text"], bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8})  # fmt: skip
    mu, n, best = heatmap.best
    ax.plot(mu, n, "*", color=COLOURS["mark"], markersize=19, markeredgecolor="black", markeredgewidth=1.0)
    text = f"optimum: N = {n:,}, mu = {mu:,}\n{best:,.0f} tokens/s"
    ax.annotate(text, (mu, n), xytext=(-14, -16), textcoords="offset points", ha="right", va="top", fontsize=11,
                fontweight="bold", color="white")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), title=heatmap.title)
    ax.set_xlabel("micro-batch size mu (sequences)")
    ax.set_ylabel("batch size N (sequences)")
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.colorbar(mesh, ax=ax, label="generation throughput (tokens/s)", pad=0.02)
    return ax


def _edges(centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cell borders halfway between centres on the log scale."""
    logs = np.log(centres.astype(float))
    inner = (logs[1:] + logs[:-1]) / 2
    first, last = logs[0] - (inner[0] - logs[0]), logs[-1] + (logs[-1] - inner[-1])
    edges: NDArray[np.float64] = np.exp(np.concatenate([[first], inner, [last]]))
    return edges

"""Which policy is best as the link and the CPU get faster or slower: the last case study of the MoE-Lightning paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.style import HEAT

if TYPE_CHECKING:
    import pandas as pd

LABELS = {
    "weights_on_gpu": "share of expert weights on the GPU",
    "attention_on_gpu": "share of attention on the GPU",
    "experts_on_gpu": "share of expert work on the GPU",
    "kv_on_gpu": "share of KV cache on the GPU",
    "generation_throughput": "tokens/s",
}


def plot_policy_regions(table: pd.DataFrame, ax: Axes, x: str, y: str, value: str) -> Axes:
    """A map of `value` over two sweep axes (columns `x`, `y`), each cell with its number."""
    wide = table.pivot(index=y, columns=x, values=value)
    data = wide.to_numpy(dtype=float)
    image = ax.imshow(data, origin="lower", aspect="auto", cmap=HEAT)
    middle = np.nanmean([np.nanmin(data), np.nanmax(data)])
    for (i, j), number in np.ndenumerate(data):
        text = "-" if not np.isfinite(number) else f"{number:,.0f}" if np.nanmax(data) > 2 else f"{number:.2f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=10.5, color="white" if number < middle else "black")
    ax.set_xticks(range(wide.shape[1]), [f"{v:g}x" for v in wide.columns])
    ax.set_yticks(range(wide.shape[0]), [f"{v:g}x" for v in wide.index])
    ax.set_xlabel(x.removesuffix("_factor").replace("_", " "))
    ax.set_ylabel(y.removesuffix("_factor").replace("_", " "))
    ax.set_title(LABELS.get(value, value))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.colorbar(image, ax=ax, pad=0.02)
    return ax

"""Which policy is best as the link and the CPU get faster: after Fig. 10 of the MoE-Lightning paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from hrm.errors import HrmError
from hrm.plotting.style import HEAT, LABEL_SIZE, fit_title

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "weights_on_gpu": "share of expert weights on the GPU",
    "attention_on_gpu": "share of attention on the GPU",
    "experts_on_gpu": "share of expert compute on the GPU",
    "kv_on_gpu": "share of KV cache on the GPU",
    "batch_size": "batch size N",
    "micro_batch_size": "micro-batch size mu",
    "generation_throughput": "generation throughput (tokens/s)",
}
RATIOS = ("weights_on_gpu", "attention_on_gpu", "experts_on_gpu", "kv_on_gpu")
AXIS_NAMES = {"cpu_factor": "CPU: memory bandwidth and compute", "htod_factor": "host-to-device bandwidth"}


def plot_policy_regions(
    table: pd.DataFrame, ax: Axes, x: str = "cpu_factor", y: str = "htod_factor", value: str = "attention_on_gpu"
) -> Axes:
    """A map of `value` over two scale factors (columns `x`, `y` of `table`), each cell with its number.

    Shares are coloured from 0 to 1; a cell where nothing fits is blank and says so.

    Raises:
        HrmError: a column that the table does not have.
    """
    for column in (x, y, value):
        if column not in table:
            raise HrmError(f"policy regions: the table has no column {column!r}; it has {', '.join(table.columns)}")
    wide = table.pivot(index=y, columns=x, values=value)
    data = wide.to_numpy(dtype=float)
    brightest = 1.0 if value in RATIOS else float(np.nanmax(data, initial=0.0)) or 1.0
    ax.imshow(data, origin="lower", aspect="auto", cmap=HEAT, label=value, vmin=0.0, vmax=brightest)
    for (i, j), number in np.ndenumerate(data):
        dark = bool(np.isfinite(number)) and number < 0.55 * brightest
        ax.text(j, i, _cell_text(number, value), ha="center", va="center", fontsize=LABEL_SIZE, fontweight="bold",
                color="white" if dark else "black")  # fmt: skip
    ax.set_xticks(range(wide.shape[1]), [f"{v:g}x" for v in wide.columns])
    ax.set_yticks(range(wide.shape[0]), [f"{v:g}x" for v in wide.index])
    ax.set(xlabel=_axis_name(x), ylabel=_axis_name(y))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    fit_title(ax, TITLES.get(value, value.replace("_", " ")))
    return ax


def _cell_text(number: float, value: str) -> str:
    if not np.isfinite(number):
        return "does\nnot fit"
    return f"{number:.0%}" if value in RATIOS else f"{number:,.0f}"


def _axis_name(column: str) -> str:
    return AXIS_NAMES.get(column, column.removesuffix("_factor").replace("_", " ").replace("cpu", "CPU"))

"""Names and colours of tasks and queues in a Gantt chart, and their legend."""

import math
from collections.abc import Collection
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from hrm.plotting.page import page_size
from hrm.plotting.style import COLOURS
from hrm.schedule.task import Kind, Resource

# Name and colour of every kind, in the order of the legend; kinds of one hue do the same sort of thing.
KINDS = {
    Kind.PRE_ATTENTION: ("norm, QKV", "#9CCBEA"),
    Kind.CPU_ATTENTION: ("CPU attention", "#0072B2"),
    Kind.GPU_ATTENTION: ("GPU attention", "#2F95D0"),
    Kind.POST_ATTENTION: ("O proj., router", "#003F66"),
    Kind.EXPERT_FFN: ("GPU experts", "#009E73"),
    Kind.CPU_EXPERT_FFN: ("CPU experts", "#00573F"),
    Kind.WEIGHT_FETCH: ("expert page", "#D55E00"),
    Kind.EXPERT_PREFETCH: ("experts ahead", "#E98A4A"),
    Kind.EXPERT_CORRECTION: ("missed experts", "#A63C00"),
    Kind.WEIGHT_STAGE: ("page staging", "#F2A36B"),
    Kind.WEIGHT_READ: ("page from disk", "#8A3300"),
    Kind.DENSE_FETCH: ("dense weights", "#F7C9A3"),
    Kind.HEAD_FETCH: ("head weights", "#FBE3D0"),
    Kind.EMBEDDING_LOAD: ("embeddings in", "#C9B3D9"),
    Kind.QKV_OFFLOAD: ("Q, K, V out", "#D6579E"),
    Kind.ATTENTION_LOAD: ("attention in", "#8E5BB5"),
    Kind.HIDDEN_STORE: ("hidden out", "#F2A6CC"),
    Kind.HIDDEN_LOAD: ("hidden in", "#4A1F66"),
    Kind.KV_FETCH: ("KV in", "#E3C000"),
    Kind.KV_STORE: ("KV out", "#F0E442"),
    Kind.KV_STAGE: ("KV staging", "#8A8A00"),
    Kind.ALL_REDUCE: ("all-reduce", "#222222"),
    Kind.LM_HEAD: ("LM head", "#6B6B6B"),
}
ROWS = {Resource.DISK: "disk", Resource.LINK: "GPU-GPU", Resource.HOST: "staging", Resource.ZERO_COPY: "zero-copy"}
IDLE: dict[str, Any] = {"facecolor": "#F7F7F7", "edgecolor": "#D4D4D4", "hatch": "///", "linewidth": 0}
LEGEND_COLUMNS = 7
LEGEND_BELOW = 42.0  # points from the axes down to the legend


def draw_legend(ax: Axes, kinds: Collection[Kind]) -> None:
    """Below the axes: the kinds that occur, and idle stretches."""
    handles = [Patch(facecolor=colour, label=name) for kind, (name, colour) in KINDS.items() if kind in kinds]
    handles.append(Patch(**IDLE, label="idle"))
    columns = math.ceil(len(handles) / legend_rows(len(kinds)))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -LEGEND_BELOW / page_size(ax)[1]),
              ncols=columns, columnspacing=1.3, handlelength=1.2, handletextpad=0.5, borderaxespad=0.0)  # fmt: skip


def legend_rows(kinds: int) -> int:
    """Lines that a legend of so many kinds takes, with the mark of idle stretches."""
    return math.ceil((kinds + 1) / LEGEND_COLUMNS)


def ink_on(colour: str) -> str:
    """Colour of text that is read on this one."""
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else COLOURS["text"]

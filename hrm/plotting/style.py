"""One look for every figure: colours that colour-blind readers can tell apart, sizes that survive a projector."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from hrm.plotting.page import page_size, text_size

# Okabe and Ito's palette (2008), by what is drawn.
COLOURS = {
    "gpu": "#007A59",
    "cpu": "#0072B2",
    "htod": "#D55E00",
    "disk": "#B4558F",
    "gpu_to_gpu": "#3F8FBF",
    "mark": "#E69F00",
    "choice": "#5B3A8C",
    "text": "#222222",
    "muted": "#6B6B6B",
    "grid": "#E9E9E9",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00", "#7A4A2B", "#7F7F7F")
SERIES_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "h", "p")
HEAT = "viridis"
LABEL_SIZE = 12.0
TITLE_SIZE = 15.0
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 13.0,
    "axes.titlesize": TITLE_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 13.0,
    "xtick.labelsize": 12.0,
    "ytick.labelsize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 12.0,
    "hatch.linewidth": 1.2,
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "hrm",
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Applies the settings to figures made inside."""
    with mpl.rc_context(_SETTINGS):
        yield


def fit_title(ax: Axes, text: str) -> None:
    """A title no wider than its axes: smaller where it would be."""
    room, needed = page_size(ax)[0], text_size(text, TITLE_SIZE, True)[0]
    ax.set_title(text, fontsize=TITLE_SIZE * min(1.0, room / needed))


def light_grid(ax: Axes) -> None:
    """A grid that stays behind the data."""
    ax.grid(True, which="major", color=COLOURS["grid"], linewidth=0.9)
    ax.set_axisbelow(True)


def plain_log_ticks(ax: Axes) -> None:
    """Ticks as 100 G, 1 T, 10 T on y and 0.1, 10, 1 k on x: read aloud more easily than powers of ten."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.yaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.minorticks_off()

"""One look for every figure: colours that colour-blind readers can tell apart, sizes that survive a projector."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes

# Okabe and Ito's palette (2008), by what is drawn.
COLOURS = {
    "gpu": "#009E73",
    "cpu": "#0072B2",
    "htod": "#D55E00",
    "disk": "#CC79A7",
    "gpu_to_gpu": "#56B4E9",
    "mark": "#E69F00",
    "text": "#222222",
    "muted": "#777777",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
HEAT = "viridis"
_SETTINGS = {
    "font.size": 12.0,
    "axes.titlesize": 13.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 11.0,
    "figure.dpi": 110.0,
    "savefig.dpi": 160.0,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Applies the settings to figures made inside."""
    with mpl.rc_context(rc=_SETTINGS):  # type: ignore[arg-type]
        yield


def light_grid(ax: Axes) -> None:
    """A grid that stays behind the data."""
    ax.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)

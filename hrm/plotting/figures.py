"""Whole figures: what the command line and the notebooks save."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrm.errors import HrmError
from hrm.plotting.roofline import plot_roofline
from hrm.plotting.roofs import MARKERS
from hrm.plotting.style import COLOURS, style
from hrm.predict.operator_points import policy_panels
from hrm.predict.rates import Rates
from hrm.roofline.case_study import attention_case, ffn_case
from hrm.roofline.chart import Chart
from hrm.search.search import search_policy
from hrm.spec.hardware import HardwareProfile
from hrm.spec.model import ModelSpec
from hrm.spec.policy import Policy
from hrm.spec.precision import choose_precision

SUFFIXES = (".png", ".svg", ".pdf")
LEVEL_NAMES = {
    "gpu": "in GPU memory",
    "htod": "over the CPU-GPU link",
    "cpu": "in CPU memory",
    "disk": "from disk",
    "gpu_to_gpu": "over the GPU-GPU link",
}


def check_suffix(path: Path) -> None:
    """Refuses names that are no figure's.

    Raises:
        HrmError: another suffix.
    """
    if path.suffix not in SUFFIXES:
        found = path.suffix or "a name without a suffix"
        raise HrmError(f"{path}: cannot write {found} as a figure; end the name in {', '.join(SUFFIXES)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF.

    Raises:
        HrmError: another suffix, or the file cannot be written.
    """
    check_suffix(path)
    try:
        with style():
            figure.savefig(path)
    except OSError as error:
        raise HrmError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None


def case_study_figure(
    profile: HardwareProfile, model: ModelSpec, context_len: int = 512, micro_batch_size: int = 128
) -> Figure:
    """The paper's Fig. 4 and 5 for any machine and model: attention, and the expert FFN.

    Raises:
        ProfileError: a number that the profile does not state.
    """
    precision = choose_precision(model, profile)
    left = attention_case(profile, model, precision, context_len)
    right = ffn_case(profile, model, precision, micro_batch_size)
    return two_charts(left, right)


def roofline_figure(rates: Rates, policy: Policy | None = None) -> Figure:
    """The operators of a policy at each memory level: FFN and projections on the left, attention on the right.

    Without a policy the best one is searched.

    Raises:
        PolicyError: the policy does not fit. InfeasibleError: none does. RooflineError: a point above its roof.
    """
    return two_charts(*policy_panels(rates, policy or search_policy(rates).policy))


def two_charts(left: Chart, right: Chart) -> Figure:
    """Two roofline charts side by side with the key to their marks; margins are fixed, since labels depend on them."""
    with style():
        figure = Figure(figsize=(14.5, 6.9))
        panels: Sequence[Axes] = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.065, right=0.98, top=0.93, bottom=0.185, wspace=0.18)
        for chart, ax in zip((left, right), panels, strict=True):
            plot_roofline(chart, ax)
        handles = key_handles((left, right))
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), bbox_to_anchor=(0.52, 0.005),
                      columnspacing=1.6, handletextpad=0.5)  # fmt: skip
    return figure


def key_handles(charts: Sequence[Chart]) -> list[Line2D]:
    """What the marks of `charts` mean; only those that occur."""
    roofs = [roof for chart in charts for roof in chart.roofs]
    levels = {p.level for chart in charts for op in chart.operators for p in op.levels}
    grey = COLOURS["muted"]
    handles = [Line2D([], [], color=grey, linewidth=2.4, linestyle=(0, (4, 2)), label="datasheet roof")]
    if any(roof.achieved is not None for roof in roofs):
        handles.append(Line2D([], [], color=grey, linewidth=2.4, label="measured roof"))
    for level, name in LEVEL_NAMES.items():
        if level in levels:
            handles.append(_mark(MARKERS[level], COLOURS[level], COLOURS[level], name))
    if levels:
        handles.append(_mark("o", "white", grey, "area, %: busy share of the pass"))
    if any(chart.lines for chart in charts):
        handles.append(_mark("o", COLOURS["htod"], COLOURS["htod"], "streamed to the GPU"))
        handles.append(_mark("o", COLOURS["cpu"], COLOURS["cpu"], "on the CPU"))
        handles.append(_mark("o", "white", grey, "hollow: the slower way"))
    return handles


def _mark(marker: str, face: str, edge: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, markersize=10, markerfacecolor=face, markeredgecolor=edge,
                  markeredgewidth=1.6, label=label)  # fmt: skip

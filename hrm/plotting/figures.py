"""Whole figures: what the command line and the notebooks save."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg", force=False)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrm.errors import HrmError
from hrm.plotting.roofline import plot_roofline
from hrm.plotting.style import COLOURS, style
from hrm.predict.operator_points import policy_chart, policy_ffn_case
from hrm.predict.rates import Rates
from hrm.roofline.case_study import attention_case, ffn_case
from hrm.spec.hardware import HardwareProfile
from hrm.spec.model import ModelSpec
from hrm.spec.policy import Policy
from hrm.spec.precision import choose_precision

CAPTION = (
    "Dashed: datasheet peak; solid: measured. One operator is joined across levels: circle GPU memory, "
    "diamond CPU-GPU link, square CPU memory;\nmarker area: share of the pass its processor spends on it. "
    "P1: stream to the GPU from here on; P2: the GPU itself binds from here on."
)
SUFFIXES = (".png", ".svg", ".pdf")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF.

    Raises:
        HrmError: another suffix, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise HrmError(f"{path}: cannot write {path.suffix or 'no suffix'}; end the name in {', '.join(SUFFIXES)}")
    try:
        with style():
            figure.savefig(path)
    except OSError as error:
        raise HrmError(f"{path}: cannot be written ({error.strerror or error})") from None


def _two_panels() -> tuple[Figure, Axes, Axes]:
    """Fixed margins, since labels are placed by the size of the axes on the page."""
    figure = Figure(figsize=(16, 6.9))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.93, bottom=0.16, wspace=0.16)
    figure.text(0.055, 0.02, CAPTION, fontsize=10.5, color=COLOURS["muted"], ha="left", va="bottom")
    return figure, left, right


def case_study_figure(profile: HardwareProfile, model: ModelSpec, context_len: int = 512) -> Figure:
    """The paper's Fig. 4 and 5 for any machine and model: attention, and the expert FFN."""
    precision = choose_precision(model, profile)
    with style():
        figure, left, right = _two_panels()
        plot_roofline(attention_case(profile, model, precision, context_len), left)
        plot_roofline(ffn_case(profile, model, precision, micro_batch_size=128), right)
    return figure


def roofline_figure(rates: Rates, policy: Policy) -> Figure:
    """Left: every operator of a policy at each memory level; right: its expert FFN between the two turning points."""
    with style():
        figure, left, right = _two_panels()
        plot_roofline(policy_chart(rates, policy), left)
        plot_roofline(policy_ffn_case(rates, policy), right)
    return figure

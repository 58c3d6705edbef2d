"""Draws a roofline chart: named roofs, operators at every memory level, turning points, marked batch sizes."""

import math

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.label_spots import around, beside_vertical, on_flat
from hrm.plotting.labels import Boxes, Label, write_labels
from hrm.plotting.page import to_page
from hrm.plotting.roofs import MARKERS, roof_axes, roof_labels
from hrm.plotting.style import COLOURS, fit_title
from hrm.roofline.chart import Chart, Choice, Mark, OperatorPoint
from hrm.spec.units import format_flops_rate

LARGEST_AREA, SMALLEST_AREA = 520.0, 36.0  # points squared; all of the pass, none of it
MARK_SIZE = 9.0
ON_ROOF = 1.05
SAME_AS_ROOF = 0.97
KERNEL_TEXT = "#8A5A00"


def plot_roofline(chart: Chart, ax: Axes) -> Axes:
    """Draws `chart` on log-log axes: x flops per byte, y flop/s. Datasheet roofs dashed, measured ones solid.

    Labels are placed for the size the axes have now.
    """
    roof_axes(ax, chart.roofs, _intensities(chart), _rates(chart))
    fit_title(ax, chart.title)
    labels: list[Label] = []
    markers: list[Marker] = []
    for line in chart.lines:
        labels += _draw_choice(ax, line, markers)
    if chart.kernel is not None:
        labels += _draw_kernel(ax, chart.kernel, chart.roofs[0].value)
    for point in (chart.p1, chart.p2):
        if point is not None:
            labels += _draw_turning_point(ax, point, markers)
    for op in sorted(chart.operators, key=lambda op: -op.share):
        labels += _draw_operator(ax, op, markers)
    write_labels(ax, [*labels, *roof_labels(ax, chart.roofs)], _boxes(ax, markers))
    return ax


Marker = tuple[float, float, float]
"""(x, y, radius in points) of a drawn marker, which labels leave free."""


def _boxes(ax: Axes, markers: list[Marker]) -> Boxes:
    found = [(*to_page(ax, x, y), radius) for x, y, radius in markers]
    return np.array([(x - r, y - r, x + r, y + r) for x, y, r in found]).reshape(-1, 4)


def _intensities(chart: Chart) -> list[float]:
    marks = [m.intensity for m in (chart.p1, chart.p2, chart.kernel) if m is not None]
    marks += [line.intensity for line in chart.lines]
    return marks + [p.intensity for op in chart.operators for p in op.levels]


def _rates(chart: Chart) -> list[float]:
    return [op.flops_per_s for op in chart.operators] + [line.streamed_flops_per_s for line in chart.lines]


def _draw_choice(ax: Axes, line: Choice, markers: list[Marker]) -> list[Label]:
    """A vertical line with both ways to compute: filled where it is better, hollow where it is worse."""
    colour = COLOURS["choice"]
    ax.plot([line.intensity] * 2, [ax.get_ylim()[0], line.flops_per_s], color=colour, linewidth=1.8, linestyle=":")
    labels = [beside_vertical(ax, line.label, colour, line.intensity, line.flops_per_s)]
    ways = (
        ("streamed to the GPU", "htod", line.streamed_flops_per_s),
        ("on the CPU", "cpu", line.in_place_flops_per_s),
    )
    for name, level, rate in ways:
        if not rate:
            continue
        best = rate == line.flops_per_s
        ax.plot(line.intensity, rate, "o", color=COLOURS[level], markersize=MARK_SIZE, zorder=5, markeredgewidth=1.8,
                markerfacecolor=COLOURS[level] if best else "white", label=f"{line.label} {name}")  # fmt: skip
        markers.append((line.intensity, rate, MARK_SIZE / 2))
    return labels


def _draw_kernel(ax: Axes, kernel: Mark, compute_roof: float) -> list[Label]:
    """The rate that the GPU itself allows; nothing where that is its compute roof."""
    high, y = ax.get_xlim()[1], kernel.flops_per_s
    if y >= SAME_AS_ROOF * compute_roof:
        return []
    ax.plot([kernel.intensity, high], [y, y], color=COLOURS["mark"], linewidth=2.2, zorder=2, label=kernel.label)
    text = f"{kernel.label}  {format_flops_rate(y)}"
    return [on_flat(ax, text, KERNEL_TEXT, y, y, min(kernel.intensity, high / 10))]


def _draw_turning_point(ax: Axes, point: Mark, markers: list[Marker]) -> list[Label]:
    x, y = point.intensity, point.flops_per_s
    ax.plot(x, y, "*", color=COLOURS["mark"], markersize=17, markeredgecolor="black", markeredgewidth=0.9, zorder=6,
            label=point.label)  # fmt: skip
    markers.append((x, y, 8.0))
    number = f"{x:,.0f}" if x >= 99.5 else f"{x:.3g}"
    return [around(ax, f"{point.label} = {number}", COLOURS["text"], x, y, 8.0, (-1, 1))]


def _draw_operator(ax: Axes, op: OperatorPoint, markers: list[Marker]) -> list[Label]:
    xs, y = [p.intensity for p in op.levels], op.flops_per_s
    area = SMALLEST_AREA + (LARGEST_AREA - SMALLEST_AREA) * min(1.0, op.share)
    ax.plot(xs, [y] * len(xs), "-", color=COLOURS["text"], linewidth=1.6, zorder=4)
    for p in op.levels:
        ax.scatter(p.intensity, y, s=area, marker=MARKERS[p.level], color=COLOURS[p.level], edgecolors="white",
                   linewidths=1.2, zorder=5, label=f"{op.label} at {p.level}")  # fmt: skip
        markers.append((p.intensity, y, math.sqrt(area) / 2))
    return [around(ax, operator_text(op), COLOURS["text"], max(xs), y, math.sqrt(area) / 2, (1, 0))]


def operator_text(op: OperatorPoint) -> str:
    """Name, busy share of the pass, and how far below which roof, in two lines."""
    roof = op.binding.split(" (")[0]  # without the number of devices
    where = f"at the {roof} roof" if op.gap < ON_ROOF else f"{_factor(op.gap)} below {roof}"
    return f"{op.label}, {op.share:.0%} busy\n{where}"


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 1.95 else f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:,.0f}x"

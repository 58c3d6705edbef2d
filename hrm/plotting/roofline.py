"""Draws a roofline chart: roofs with their names along them, operators at every memory level, marked batch sizes."""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.labels import spread_labels
from hrm.plotting.style import COLOURS, light_grid
from hrm.roofline.chart import Chart, Line, OperatorPoint, Roof
from hrm.spec.units import format_flops_rate, format_rate

MARKERS = {"gpu": "o", "cpu": "s", "htod": "D", "disk": "v", "gpu_to_gpu": "^"}
LINE_COLOUR = "#7A4EAB"
CLOSE_SLOPES = 2.2  # slopes nearer than this factor have their names staggered
SLOPE_STEP = 1.45  # decades
LARGEST_MARKER = 420.0
SMALLEST_MARKER = 28.0


def plot_roofline(chart: Chart, ax: Axes) -> Axes:
    """Draws `chart` on log-log axes: x flops per byte, y flop/s. Datasheet roofs dashed, measured ones solid."""
    low, high = _x_limits(chart)
    bottom, top = _y_limits(chart, low)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top), title=chart.title)
    ax.set_xlabel("operational intensity at each level (flops/byte)")
    ax.set_ylabel("performance (flop/s)")
    light_grid(ax)
    for roof in chart.roofs:
        _draw_roof(ax, roof, chart.roofs)
    _label_roofs(ax, chart.roofs)
    _draw_marks(ax, chart)
    _draw_operators(ax, chart.operators)
    return ax


def _intensities(chart: Chart) -> list[float]:
    lines = [*chart.lines, *chart.trajectory, *(x for x in (chart.p1, chart.p2, chart.kernel) if x)]
    return [line.intensity for line in lines] + [p.intensity for op in chart.operators for p in op.levels]


def _x_limits(chart: Chart) -> tuple[float, float]:
    known = _intensities(chart)
    ridges = [_ridge(roof, chart.roofs) for roof in chart.roofs if not roof.is_compute]
    low, high = min([*known, *ridges]), max([*known, *ridges])
    return 10 ** (math.log10(low) - 1.6), 10 ** (math.log10(high) + 1.2)


def _y_limits(chart: Chart, low: float) -> tuple[float, float]:
    marks = [line.flops_per_s for line in (*chart.lines, *chart.trajectory)]
    marks += [op.flops_per_s for op in chart.operators]
    slopes = [roof.value for roof in chart.roofs if not roof.is_compute and roof.level not in ("disk", "gpu_to_gpu")]
    floor = min([*marks, min(slopes) * low * 10])
    return floor / 4, max(roof.peak for roof in chart.roofs if roof.is_compute) * 4


def _ridge(roof: Roof, roofs: tuple[Roof, ...]) -> float:
    """Intensity at which a slope meets the compute roof that limits it: the CPU's for CPU memory, else the GPU's."""
    return _ceiling(roof, roofs).peak / roof.value


def _ceiling(roof: Roof, roofs: tuple[Roof, ...]) -> Roof:
    level = "cpu" if roof.level == "cpu" else "gpu"
    return next(r for r in roofs if r.is_compute and r.level == level)


def _draw_roof(ax: Axes, roof: Roof, roofs: tuple[Roof, ...]) -> None:
    colour = COLOURS[roof.level]
    _draw_one(ax, roof, roof.peak, roofs, colour, "--")
    if roof.achieved:
        _draw_one(ax, roof, roof.achieved, roofs, colour, "-")


def _draw_one(ax: Axes, roof: Roof, value: float, roofs: tuple[Roof, ...], colour: str, dash: str) -> None:
    low, high = ax.get_xlim()
    if roof.is_compute:
        slopes = [r.value for r in roofs if not r.is_compute and r.level == roof.level]
        start = value / max(slopes) if slopes else low
        ax.plot([start, high], [value, value], color=colour, linestyle=dash, linewidth=2.2, solid_capstyle="butt")
        return
    end = _ceiling(roof, roofs).peak / value
    ax.plot([low, end], [value * low, value * end], color=colour, linestyle=dash, linewidth=2.2)


def _label_roofs(ax: Axes, roofs: tuple[Roof, ...]) -> None:
    """Names every roof along it: slopes at their lower left end, flat roofs at the right."""
    low, high = ax.get_xlim()
    bottom, _ = ax.get_ylim()
    previous, shift = math.inf, 0.0
    for roof in sorted(roofs, key=lambda r: (r.is_compute, -r.value)):
        shift = SLOPE_STEP - shift if previous / roof.value < CLOSE_SLOPES and not roof.is_compute else 0.0
        previous = roof.value
        start = high if roof.is_compute else max(low, bottom / roof.value) * 10 ** (0.12 + shift)
        rate = format_flops_rate(roof.value) if roof.is_compute else format_rate(roof.value)
        ax.annotate(
            f"{roof.label}  {rate}",
            (start, roof.at(start)),
            xytext=(-4, 4) if roof.is_compute else (0, 5),
            textcoords="offset points",
            ha="right" if roof.is_compute else "left",
            va="bottom",
            rotation=0.0 if roof.is_compute else _slope_angle(ax),
            rotation_mode="anchor",
            color=COLOURS[roof.level],
            fontsize=10.5,
            fontweight="bold",
        )


def _slope_angle(ax: Axes) -> float:
    """Degrees on the page of a line of slope 1 in log-log space."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    figure = ax.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    box = ax.get_position()
    across = box.width * width / math.log10(x1 / x0)
    up = box.height * height / math.log10(y1 / y0)
    return math.degrees(math.atan2(up, across))


def _draw_marks(ax: Axes, chart: Chart) -> None:
    bottom = ax.get_ylim()[0]
    for line in chart.lines:
        ax.plot([line.intensity] * 2, [bottom, line.flops_per_s], color=LINE_COLOUR, linewidth=1.4, linestyle=":")
        ax.plot(line.intensity, line.flops_per_s, "o", color="black", markersize=6, zorder=5)
        _note(ax, line.label, (line.intensity, bottom), (4, 6), "left", "bottom", LINE_COLOUR, rotation=90)
    if chart.kernel:
        high, y = ax.get_xlim()[1], chart.kernel.flops_per_s
        ax.plot([chart.kernel.intensity, high], [y, y], color=COLOURS["mark"], linewidth=2.2)
        ax.plot(chart.kernel.intensity, y, "o", color=COLOURS["mark"], markersize=7, zorder=5)
        text = f"{chart.kernel.label}  {format_flops_rate(y)}"
        _note(ax, text, (high, y), (-4, -5), "right", "top", "#9A6B00", weight="bold")
    for point in (p for p in (chart.p1, chart.p2) if p):
        ax.plot(point.intensity, point.flops_per_s, "D", color=COLOURS["htod"], markersize=8, zorder=6)
        text = f"{point.label} = {point.intensity:,.0f}"
        at = (point.intensity, point.flops_per_s)
        _note(ax, text, at, (-9, 8), "right", "bottom", COLOURS["text"], weight="bold")
    _draw_trajectory(ax, chart.trajectory)


def _note(
    ax: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    ha: str,
    va: str,
    colour: str,
    weight: str = "normal",
    rotation: float = 0.0,
) -> None:
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.82}
    ax.annotate(
        text, at, xytext=offset, textcoords="offset points", ha=ha, va=va, color=colour, fontsize=10.5,
        fontweight=weight, rotation=rotation, bbox=box, zorder=7,
    )  # fmt: skip


def _draw_trajectory(ax: Axes, steps: tuple[Line, ...]) -> None:
    if not steps:
        return
    ax.plot([s.intensity for s in steps], [s.flops_per_s for s in steps], "-", color=COLOURS["text"], linewidth=1.2)
    ax.scatter([s.intensity for s in steps], [s.flops_per_s for s in steps], c=np.arange(len(steps)), cmap="viridis",
               s=46, zorder=6, edgecolors="white", linewidths=0.8)  # fmt: skip
    spread_labels(ax, [(s.intensity, s.flops_per_s, s.label, COLOURS["text"]) for s in steps])


def _draw_operators(ax: Axes, operators: Iterable[OperatorPoint]) -> None:
    labels, markers = [], []
    for op in operators:
        colour = COLOURS[op.processor]
        xs = [p.intensity for p in op.levels]
        size = SMALLEST_MARKER + (LARGEST_MARKER - SMALLEST_MARKER) * min(1.0, op.share)
        ax.plot(xs, [op.flops_per_s] * len(xs), "-", color=COLOURS["text"], linewidth=1.3, zorder=4)
        for p in op.levels:
            ax.scatter(p.intensity, op.flops_per_s, s=size, marker=MARKERS[p.level], color=COLOURS[p.level], alpha=0.9,
                       edgecolors="white", linewidths=1.0, zorder=5)  # fmt: skip
        markers += [(x, op.flops_per_s, math.sqrt(size) * 1.1) for x in xs]
        labels.append((max(xs), op.flops_per_s, f"{op.label}: {_gap_words(op)}", colour))
    spread_labels(ax, labels, markers)


def _gap_words(op: OperatorPoint) -> str:
    if op.gap < 1.05:
        return f"on {op.binding}"
    return f"{op.gap:.3g}x under {op.binding}"

"""A pass as bars on queues, one row per resource: MoE-Lightning's Fig. 6 for any timeline, predicted or measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.gantt_bars import GanttBar, Window, gantt_window, idle_spans, row_bars
from hrm.plotting.gantt_kinds import IDLE, KINDS, ROWS, draw_legend, ink_on
from hrm.plotting.page import page_size, text_size
from hrm.plotting.style import COLOURS, fit_title
from hrm.predict.timeline import Timeline
from hrm.schedule.task import Kind, Resource

THINNEST = 0.6  # points: bars are drawn no thinner; neighbours that would be are merged
GAP = 0.7  # points left white between bars that can spare them
HEIGHT = 0.78  # of a bar, in rows
NUMBER_SIZE, TURNED_SIZE, LAYER_SIZE = 10.0, 9.0, 11.0
DIGIT_HEIGHT = 0.73  # of its size
PADDING = 2.0  # points around a number in its bar


def plot_gantt(timeline: Timeline, ax: Axes, layers: tuple[int, int] | None = None) -> Axes:
    """Rows of bars coloured by kind, from when the GPU begins layer `layers[0]` until it ends `layers[1] - 1`.

    Without `layers`: the whole pass up to four layers, else two in its middle. A number in a bar is its micro-batch,
    "L" the layer that weights are for; hatched is idle; the percentage is the busy share of the whole pass.

    Raises:
        HrmError: layers that the pass does not have, or that the GPU does not compute.
    """
    window = gantt_window(timeline, layers)
    kinds = _draw(timeline, ax, window, window.seconds)
    fit_title(ax, _title(timeline))
    draw_legend(ax, kinds)
    return ax


def plot_gantt_pair(
    upper: Timeline, lower: Timeline, axes: Sequence[Axes], layers: tuple[int, int] | None = None
) -> Sequence[Axes]:
    """The predicted timeline above the measured one, the same layers on the same scale.

    Raises:
        HrmError: as `plot_gantt`.
    """
    windows = [gantt_window(timeline, layers) for timeline in (upper, lower)]
    length = max(window.seconds for window in windows)
    kinds: set[Kind] = set()
    for name, timeline, window, ax in zip((" predicted", " measured"), (upper, lower), windows, axes, strict=True):
        kinds |= _draw(timeline, ax, window, length)
        fit_title(ax, _title(timeline, name))
    axes[0].set_xlabel("")
    draw_legend(axes[1], kinds)
    return axes


@dataclass(frozen=True)
class _Canvas:
    """Axes that show a window, `scale` units of x per second and `point` seconds per point on the page."""

    ax: Axes
    window: Window
    scale: float
    point: float

    def x(self, seconds: float) -> float:
        return (seconds - self.window.start) * self.scale

    def boxes(self, spans: Sequence[tuple[float, float]], row: int, **style: Any) -> None:
        """Rectangles from the first to the second of each two seconds."""
        xs = [(self.x(start), (end - start) * self.scale) for start, end in spans]
        self.ax.broken_barh(xs, (row - HEIGHT / 2, HEIGHT), **style)

    def write(self, seconds: float, y: float, text: str, size: float, colour: str, turned: bool = False) -> None:
        self.ax.text(self.x(seconds), y, text, ha="center", va="center_baseline", rotation=90 if turned else 0,
                     rotation_mode="anchor", fontsize=size, color=colour)  # fmt: skip


def _draw(timeline: Timeline, ax: Axes, window: Window, length: float) -> set[Kind]:
    """Rows, idle stretches and axes of one timeline, `length` seconds wide; returns the kinds that occur."""
    scale, unit = (1.0, "s") if length >= 2 else (1e3, "ms")
    queues, kinds = list(timeline.graph.queues), set()
    ax.set_xlim(0, length * scale)
    ax.set_ylim(len(queues) - 0.5, -0.85)
    canvas = _Canvas(ax, window, scale, length / page_size(ax)[0])
    for row, resource in enumerate(queues):
        bars = list(row_bars(timeline, resource, window, THINNEST * canvas.point))
        canvas.boxes(idle_spans(bars, window, THINNEST * canvas.point / 2), row, zorder=1, **IDLE)
        kinds |= _draw_bars(canvas, bars, row)
    _name_layers(timeline, canvas)
    busy = timeline.utilisation
    ax.set_yticks(range(len(queues)), [f"{ROWS.get(r, r.value)}\n{busy[r]:.1%} busy" for r in queues])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(_time_label(timeline, window, unit))
    return kinds


def _draw_bars(canvas: _Canvas, bars: list[GanttBar], row: int) -> set[Kind]:
    """Bars of one row, one collection per kind."""
    kinds = dict.fromkeys(bar.kind for bar in bars)
    for kind in kinds:
        same = [bar for bar in bars if bar.kind == kind]
        gap = GAP * canvas.point / 2
        spans = [(b.start + gap, b.end - gap) if b.end - b.start > 20 * gap else (b.start, b.end) for b in same]
        spans = [(start, max(end, start + THINNEST * canvas.point)) for start, end in spans]
        canvas.boxes(spans, row, zorder=2, facecolor=KINDS[kind][1], linewidth=0)
        _write_numbers(canvas, same, row, ink_on(KINDS[kind][1]))
    return set(kinds)


def _write_numbers(canvas: _Canvas, bars: list[GanttBar], row: int, ink: str) -> None:
    """Upright or, where that makes room in most bars of the kind, turned; none in bars too narrow."""
    typical = float(np.median([bar.end - bar.start for bar in bars])) / canvas.point
    upright = {bar.text: text_size("0" * len(bar.text), NUMBER_SIZE, False)[0] + PADDING for bar in bars if bar.text}
    narrow = TURNED_SIZE * DIGIT_HEIGHT + PADDING
    turned = narrow <= typical < max(upright.values(), default=0.0)
    size = TURNED_SIZE if turned else NUMBER_SIZE
    for bar in bars:
        if bar.text and bar.end - bar.start >= (narrow if turned else upright[bar.text]) * canvas.point:
            canvas.write((bar.start + bar.end) / 2, row, bar.text, size, ink, turned)


def _name_layers(timeline: Timeline, canvas: _Canvas) -> None:
    """Above the GPU's row, the layers by number; each ends with its last task on the GPU."""
    ends: dict[int, float] = {}
    for i in timeline.graph.queues.get(Resource.GPU, ()):
        layer = timeline.graph.tasks[i].layer
        ends[layer] = max(ends.get(layer, 0.0), float(timeline.end[i]))
    left, borders = canvas.window.start, []
    for layer, right in sorted(ends.items()):
        if left < right <= canvas.window.end:
            room = (right - left) / canvas.point - 2 * PADDING
            fitting = [n for n in (f"layer {layer}", f"{layer}") if text_size(n, LAYER_SIZE, False)[0] < room]
            for name in fitting[:1]:
                canvas.write((left + right) / 2, -0.62, name, LAYER_SIZE, COLOURS["text"])
            borders.append(canvas.x(right))
            left = right
    canvas.ax.vlines(borders, -0.8, -0.42, color=COLOURS["muted"], linewidth=1.0, clip_on=False)


def _time_label(timeline: Timeline, window: Window, unit: str) -> str:
    count = timeline.graph.num_layers
    if (window.first, window.stop) == (0, count):
        return f"time from the start of the pass ({unit})"
    last = window.stop - 1
    names = f"layer {last}" if last == window.first else f"layers {window.first} to {last}"
    return f"time from the start of layer {window.first} ({unit}); shown: {names} of {count}"


def _title(timeline: Timeline, how: str = "") -> str:
    batch, seconds = timeline.graph.slice, timeline.makespan
    took = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    parts = "1 micro-batch" if len(batch.micro_batches) == 1 else f"{len(batch.micro_batches)} micro-batches"
    return f"{timeline.graph.schedule}{how}: {took} per pass, {batch.tokens:,} tokens in {parts}"

"""A pass as bars on queues, one row per resource: MoE-Lightning's Fig. 6 for any timeline, predicted or measured."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from hrm.errors import HrmError
from hrm.plotting.page import page_size, text_size
from hrm.plotting.style import COLOURS, fit_title
from hrm.predict.timeline import Timeline
from hrm.schedule.task import Kind, Resource, Task

# Name and colour of every kind, in the order of the legend; kinds of one hue do the same sort of thing.
KINDS = {
    Kind.PRE_ATTENTION: ("norm, QKV", "#9CCBEA"),
    Kind.CPU_ATTENTION: ("CPU attention", "#0072B2"),
    Kind.GPU_ATTENTION: ("GPU attention", "#2F95D0"),
    Kind.POST_ATTENTION: ("O proj., router", "#003F66"),
    Kind.EXPERT_FFN: ("GPU experts", "#009E73"),
    Kind.CPU_EXPERT_FFN: ("CPU experts", "#00573F"),
    Kind.WEIGHT_FETCH: ("expert page", "#D55E00"),
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
WHOLE = 4  # layers up to which a pass is shown in full
THINNEST = 0.6  # points: bars are drawn no thinner; neighbours that would be are merged
MERGED = 4  # times that width, over which they are
GAP = 0.7  # points left white between bars that can spare them
HEIGHT = 0.78  # of a bar, in rows
NUMBER_SIZE, TURNED_SIZE, LAYER_SIZE = 10.0, 9.0, 11.0
DIGIT_HEIGHT = 0.73  # of its size
PADDING = 2.0  # points around a number in its bar
LEGEND_COLUMNS = 7
LEGEND_BELOW = 42.0  # points from the axes down to the legend


@dataclass(frozen=True)
class Window:
    """Seconds of the pass that are shown, and the layers [first, stop) that the GPU computes in them."""

    start: float
    end: float
    first: int
    stop: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True)
class GanttBar:
    """A task, or neighbours too thin to tell apart: as long as they are together, of the kind most are; seconds."""

    start: float
    end: float
    kind: Kind
    text: str


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
    _legend(ax, kinds)
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
    _legend(axes[1], kinds)
    return axes


def gantt_window(timeline: Timeline, layers: tuple[int, int] | None) -> Window:
    """What `plot_gantt` shows; all layers are the whole pass, with what comes before and after them.

    Raises:
        HrmError: as `plot_gantt`.
    """
    count = timeline.graph.num_layers
    first, stop = layers or ((0, count) if count <= WHOLE else (count // 2 - 1, count // 2 + 1))
    if not 0 <= first < stop <= count:
        raise HrmError(f"gantt: layers {first}:{stop} are not in the pass; give first < end within 0:{count}")
    if (first, stop) == (0, count):
        return Window(0.0, timeline.makespan, first, stop)
    tasks, queue = timeline.graph.tasks, timeline.graph.queues.get(Resource.GPU, ())
    shown = [i for i in queue if first <= tasks[i].layer < stop]
    if not shown:
        raise HrmError(f"gantt: the GPU computes nothing of layers {first}:{stop}; choose others")
    return Window(float(timeline.start[shown].min()), float(timeline.end[shown].max()), first, stop)


def row_bars(timeline: Timeline, resource: Resource, window: Window, thinnest: float) -> Iterator[GanttBar]:
    """Bars of a row in order, cut to the window; neighbours shorter than `thinnest` seconds are merged."""
    queue = np.array(timeline.graph.queues.get(resource, ()), dtype=int)
    starts, ends = timeline.start[queue], timeline.end[queue]
    inside = (ends > window.start) & (starts < window.end) & (ends > starts)
    shown = zip(queue[inside], starts[inside].clip(window.start), ends[inside].clip(max=window.end), strict=True)
    thin: list[GanttBar] = []
    for i, start, end in shown:
        task = timeline.graph.tasks[i]
        bar = GanttBar(float(start), float(end), task.kind, _text(task))
        if thin and (end - start >= thinnest or end - thin[0].start > MERGED * thinnest):
            yield _merged(thin)
            thin = []
        if end - start >= thinnest:
            yield bar
        else:
            thin.append(bar)
    if thin:
        yield _merged(thin)


def idle_spans(bars: Sequence[GanttBar], window: Window, shortest: float) -> list[tuple[float, float]]:
    """First and last second of what the bars of a row leave free in the window, if longer than `shortest` seconds."""
    starts = [bar.start for bar in bars] + [window.end]
    ends = np.maximum.accumulate([window.start, *(bar.end for bar in bars)]).tolist()
    return [(end, start) for end, start in zip(ends, starts, strict=True) if start - end > shortest]


def _merged(bars: list[GanttBar]) -> GanttBar:
    seconds: dict[Kind, float] = {}
    for bar in bars:
        seconds[bar.kind] = seconds.get(bar.kind, 0.0) + bar.end - bar.start
    return GanttBar(
        bars[0].start, bars[0].start + sum(seconds.values()), max(seconds, key=lambda kind: seconds[kind]), ""
    )


def _text(task: Task) -> str:
    return f"L{task.layer}" if task.micro_batch is None else str(task.micro_batch)


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
        _write_numbers(canvas, same, row, _ink(KINDS[kind][1]))
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


def _legend(ax: Axes, kinds: set[Kind]) -> None:
    handles = [Patch(facecolor=colour, label=name) for kind, (name, colour) in KINDS.items() if kind in kinds]
    handles.append(Patch(**IDLE, label="idle"))
    columns = math.ceil(len(handles) / legend_rows(len(kinds)))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -LEGEND_BELOW / page_size(ax)[1]),
              ncols=columns, columnspacing=1.3, handlelength=1.2, handletextpad=0.5, borderaxespad=0.0)  # fmt: skip


def legend_rows(kinds: int) -> int:
    """Lines that a legend of so many kinds takes, with the mark of idle stretches."""
    return math.ceil((kinds + 1) / LEGEND_COLUMNS)


def _ink(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else COLOURS["text"]

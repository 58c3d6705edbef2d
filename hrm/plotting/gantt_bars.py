"""What a Gantt chart shows of a timeline: its window, the bars of a row, and what they leave idle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hrm.errors import HrmError
from hrm.predict.timeline import Timeline
from hrm.schedule.task import Kind, Resource, Task

WHOLE = 4  # layers up to which a pass is shown in full
MERGED = 4  # times `thinnest`, over which thin neighbours are merged


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

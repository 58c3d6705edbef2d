"""A timeline as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hrm.errors import HrmError
from hrm.predict.timeline import Timeline
from hrm.schedule.task import Resource, Task
from hrm.spec.text_file import write_text

PROCESS = 1
MOST_ARROWED = 20_000  # tasks from which a graph's edges are left out: the viewer would crawl
ROWS = {resource: row for row, resource in enumerate(Resource, start=1)}
Event = dict[str, Any]


def chrome_trace(timeline: Timeline, name: str) -> dict[str, Any]:
    """Trace of a pass: a thread per queue, a complete event per task, an arrow per edge between two queues.

    Times are microseconds from the start of the pass, to the nanosecond. Arrows are left out from 20,000 tasks on.
    """
    graph = timeline.graph
    start = [round(seconds * 1e6, 3) for seconds in timeline.start.tolist()]
    end = [round(seconds * 1e6, 3) for seconds in timeline.end.tolist()]
    events = list(_names(timeline, name))
    for task, begin, stop in zip(graph.tasks, start, end, strict=True):
        events.append(_task_event(task, begin, stop))
    if len(graph.tasks) < MOST_ARROWED:
        events += _arrows(graph.tasks, [(a + b) / 2 for a, b in zip(start, end, strict=True)])
    summary = {"schedule": graph.schedule, "layers": graph.num_layers, "makespan_seconds": timeline.makespan}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": summary}


def write_chrome_trace(timeline: Timeline, path: Path, name: str) -> None:
    """Writes the trace as JSON.

    Raises:
        HrmError: the file cannot be written.
    """
    text = json.dumps(chrome_trace(timeline, name), separators=(",", ":"))
    write_text(path, text, HrmError)


def _names(timeline: Timeline, name: str) -> Iterator[Event]:
    yield _metadata("process_name", 0, {"name": name})
    for resource in timeline.graph.queues:
        yield _metadata("thread_name", ROWS[resource], {"name": resource.value})
        yield _metadata("thread_sort_index", ROWS[resource], {"sort_index": ROWS[resource]})


def _metadata(what: str, row: int, args: Event) -> Event:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": row, "args": args}


def _task_event(task: Task, start: float, end: float) -> Event:
    args = {
        "layer": task.layer,
        "micro_batch": task.micro_batch,
        "pages": list(task.work.pages),
        "sequences": task.work.sequences,
        "prompt_tokens": task.work.prompt_tokens,
    }
    return {"ph": "X", "name": task.kind.value, "cat": task.resource.value, "pid": PROCESS, "tid": ROWS[task.resource],
            "ts": start, "dur": round(end - start, 3), "args": args}  # fmt: skip


def _arrows(tasks: tuple[Task, ...], middle: list[float]) -> Iterator[Event]:
    """From the middle of one task to the middle of the other: an event at a border may be given to a neighbour."""
    number = 0
    for i, task in enumerate(tasks):
        for before in task.after:
            if tasks[before].resource == task.resource:
                continue
            number += 1
            edge = {"name": "after", "cat": "after", "id": number, "pid": PROCESS}
            yield {**edge, "ph": "s", "tid": ROWS[tasks[before].resource], "ts": middle[before]}
            yield {**edge, "ph": "f", "bp": "e", "tid": ROWS[task.resource], "ts": middle[i]}

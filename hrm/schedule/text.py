"""Task graphs as text: a header, then one task per line, as in

    12 GPU post_attention L1 M0 sequences=36 after 3 9

Fields at their default are left out. Loading what was dumped gives an equal graph, and dumping that the same text.
"""

from dataclasses import fields
from typing import Any

from hrm.errors import ScheduleError
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import MicroBatch
from hrm.schedule.task import Task, Work
from hrm.schedule.text_reader import GraphReader

FIRST_LINE = "hrm task graph, format 1"


def dump(graph: TaskGraph) -> str:
    """The graph as lines of text."""
    plan = graph.pages
    head = [
        FIRST_LINE,
        f"schedule {graph.schedule}",
        f"layers {graph.num_layers}",
        " ".join(["blocks", *map(str, graph.block_starts)]),
        f"slots {plan.num_slots} ahead {plan.ahead}",
    ]
    streamed = zip(plan.per_layer, plan.layer_share, strict=True)
    head += [f"pages L{i} {count} share={float(share)!r}" for i, (count, share) in enumerate(streamed)]
    head += [" ".join([f"micro_batch M{j}", *_values(mb)]) for j, mb in enumerate(graph.slice.micro_batches)]
    tasks = [_line(i, task) for i, task in enumerate(graph.tasks)]
    return "\n".join([*head, f"tasks {len(tasks)}", *tasks, ""])


def load(text: str) -> TaskGraph:
    """The graph that a text describes; whether it can run is `validate`'s to say.

    Raises:
        ScheduleError: what cannot be read, with the number of its line.
    """
    reader = GraphReader(text.splitlines())
    if reader.next_line("the first line") != FIRST_LINE.split():
        raise ScheduleError(
            f"task graph: line 1 is not {FIRST_LINE!r}; this is no task graph, or one of another format"
        )
    return reader.graph()


def _line(index: int, task: Task) -> str:
    where = f"L{task.layer}" if task.micro_batch is None else f"L{task.layer} M{task.micro_batch}"
    parts = [str(index), task.resource.value, task.kind.value, where, *_values(task.work)]
    if task.after:
        parts += ["after", *map(str, task.after)]
    return " ".join(parts)


def _values(record: Work | MicroBatch) -> list[str]:
    """`name=value` of all fields that are not at their default; floats with every digit."""
    found = []
    for field in fields(record):
        value = getattr(record, field.name)
        if value != field.default:
            found.append(f"{field.name}={_value(field.type, value)}")
    return found


def _value(kind: Any, value: Any) -> str:
    if kind is bool:
        return "yes"
    if kind is float:
        return repr(float(value))
    return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else str(value)

"""The order in which one thread issues tasks of several queues.

Tasks come in the order of the graph, which no task precedes that it waits for. A result of the CPU's experts is an
exception: the thread waits for it on the host, and what lies between it and its first reader is issued before.
"""

from itertools import pairwise

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource


def issue_order(graph: TaskGraph, together: frozenset[Resource]) -> tuple[int, ...]:
    """Indices of the tasks of the queues `together`; each queue keeps its own order."""
    mine = [i for i, task in enumerate(graph.tasks) if task.resource in together]
    following = _following(graph)
    anchor: dict[int, int] = {}
    for i in reversed(mine):
        anchor[i] = i
        if _awaits_cpu_experts(graph, i):
            after = following.get(i)
            anchor[i] = min(_first_reader(graph, i, together), len(graph.tasks) if after is None else anchor[after])
    return tuple(sorted(mine, key=lambda i: (anchor[i], anchor[i] == i, i)))


def _following(graph: TaskGraph) -> dict[int, int]:
    """Of every task the next one in its queue."""
    return {i: after for queue in graph.queues.values() for i, after in pairwise(queue)}


def _awaits_cpu_experts(graph: TaskGraph, index: int) -> bool:
    task = graph.tasks[index]
    return task.kind == Kind.HIDDEN_LOAD and any(graph.tasks[i].kind == Kind.CPU_EXPERT_FFN for i in task.after)


def _first_reader(graph: TaskGraph, index: int, together: frozenset[Resource]) -> int:
    """The first of the queues' tasks that waits for the task, through other queues too; past the end if none does."""
    waiting, stuck = {index}, set[Resource]()  # queues in which something waits: all behind it waits too
    for i in range(index + 1, len(graph.tasks)):
        task = graph.tasks[i]
        if task.resource not in stuck and waiting.isdisjoint(task.after):
            continue
        if task.resource in together:
            return i
        waiting.add(i)
        stuck.add(task.resource)
    return len(graph.tasks)

"""A task graph with its costs, laid out for simulation: queues of plain numbers, and which layers repeat."""

from dataclasses import dataclass
from itertools import pairwise

from hrm.predict.layer_rates import Cost
from hrm.predict.sharing import Demand, Sharing
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Resource

LONGEST_PERIOD = 8  # layers after which a pattern of different layers may repeat


@dataclass(frozen=True)
class Program:
    """Queues of one graph; positions count within a queue.

    seconds, demands, after: per queue and position; `demands` are indices into `table`, `after` holds (queue, position)
        pairs.
    block_positions: per block and one past the last, the position in every queue at which it begins.
    block_ids: equal for blocks whose tasks are copies of each other, shifted.
    """

    resources: tuple[Resource, ...]
    indices: tuple[tuple[int, ...], ...]
    seconds: list[list[float]]
    demands: list[list[int]]
    table: list[Demand]
    after: list[list[tuple[tuple[int, int], ...]]]
    block_positions: tuple[tuple[int, ...], ...]
    block_ids: tuple[int, ...]
    contended: bool


def compile_program(graph: TaskGraph, costs: list[Cost], sharing: Sharing) -> Program:
    """Lays out a graph for `run`."""
    resources = tuple(graph.queues)
    queue_of = {resource: q for q, resource in enumerate(resources)}
    place = [(0, 0)] * len(graph.tasks)
    for q, resource in enumerate(resources):
        for position, index in enumerate(graph.queues[resource]):
            place[index] = (q, position)
    known: dict[tuple[Resource, int], int] = {}
    table: list[Demand] = []
    demands: list[list[int]] = [[] for _ in resources]
    seconds: list[list[float]] = [[] for _ in resources]
    after: list[list[tuple[tuple[int, int], ...]]] = [[] for _ in resources]
    for task, cost in zip(graph.tasks, costs, strict=True):
        q = queue_of[task.resource]
        key = (task.resource, id(cost))
        if key not in known:
            known[key] = len(table)
            table.append(sharing.demand(task.resource, cost))
        demands[q].append(known[key])
        seconds[q].append(cost.seconds)
        after[q].append(tuple([place[i] for i in task.after]))
    borders = _borders(graph, queue_of, len(resources))
    return Program(
        resources,
        tuple(graph.queues.values()),
        seconds,
        demands,
        table,
        after,
        borders,
        _block_ids(graph, costs),
        _may_contend([[table[d] for d in set(queue)] for queue in demands]),
    )


def _borders(graph: TaskGraph, queue_of: dict[Resource, int], queues: int) -> tuple[tuple[int, ...], ...]:
    counts, borders, starts = [0] * queues, [], set(graph.block_starts)
    for i, task in enumerate(graph.tasks):
        if i in starts:
            borders.append(tuple(counts))
        counts[queue_of[task.resource]] += 1
    return (*borders, tuple(counts))


def _block_ids(graph: TaskGraph, costs: list[Cost]) -> tuple[int, ...]:
    seen: dict[tuple[object, ...], int] = {}
    ids = []
    for begin, end in pairwise((*graph.block_starts, len(graph.tasks))):
        content = tuple(
            (task.resource, id(costs[i]), *[i - dep for dep in task.after])
            for i, task in enumerate(graph.tasks[begin:end], begin)
        )
        ids.append(seen.setdefault(content, len(seen)))
    return tuple(ids)


def _may_contend(demands: list[list[Demand]]) -> bool:
    """Whether the largest demands of all queues together exceed a shared part."""
    worst = [[max(d[part] for d in queue) for queue in demands] for part in range(3)]
    return any(sum(part) > 1.0 for part in worst)

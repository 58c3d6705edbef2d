"""What all passes of one structure share: queues, edges, which tasks cost the same, and which layers repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Resource

Edges = tuple[tuple[int, int], ...]
"""(queue, position) of the tasks that one waits for."""


@dataclass(frozen=True)
class Layout:
    """A graph as queues; positions count within a queue.

    indices: of the tasks of every queue, in the graph. after, slots: per queue and position; tasks of one slot cost the
    same, and `samples` holds one task's index per slot.
    block_positions: per block and one past the last, the position in every queue at which it begins.
    block_ids: equal for blocks whose tasks are copies of each other, shifted.
    """

    resources: tuple[Resource, ...]
    indices: tuple[tuple[int, ...], ...]
    after: list[list[Edges]]
    slots: list[list[int]]
    samples: list[int]
    block_positions: tuple[tuple[int, ...], ...]
    block_ids: tuple[int, ...]


def lay_out(graph: TaskGraph, layer_class: Sequence[int]) -> Layout:
    """Lays out a graph of a model whose layer i is of class `layer_class[i]` (equal classes: equal layers)."""
    queues = graph.queues
    place = [(0, 0)] * len(graph.tasks)
    for q, indices in enumerate(queues.values()):
        for position, index in enumerate(indices):
            place[index] = (q, position)
    slot_of, samples = _slots(graph, layer_class)
    return Layout(
        tuple(queues),
        tuple(queues.values()),
        [[tuple([place[a] for a in graph.tasks[i].after]) for i in indices] for indices in queues.values()],
        [[slot_of[i] for i in indices] for indices in queues.values()],
        samples,
        _borders(graph, place, len(queues)),
        _block_ids(graph, slot_of),
    )


def _slots(graph: TaskGraph, layer_class: Sequence[int]) -> tuple[list[int], list[int]]:
    seen: dict[tuple[object, ...], int] = {}
    samples: list[int] = []
    slot_of = []
    for i, task in enumerate(graph.tasks):
        work = task.work
        layer = -1 if task.layer == 0 else layer_class[task.layer]  # the first layer's tokens come from the embedding
        size = work.sequences, work.prompt_tokens, work.share, work.experts
        key = (task.kind, layer, task.micro_batch, task.resource, *size)
        slot = seen.setdefault(key, len(samples))
        if slot == len(samples):
            samples.append(i)
        slot_of.append(slot)
    return slot_of, samples


def _borders(graph: TaskGraph, place: list[tuple[int, int]], queues: int) -> tuple[tuple[int, ...], ...]:
    counts, borders, starts = [0] * queues, [], set(graph.block_starts)
    for i, (q, _) in enumerate(place):
        if i in starts:
            borders.append(tuple(counts))
        counts[q] += 1
    return (*borders, tuple(counts))


def _block_ids(graph: TaskGraph, slot_of: list[int]) -> tuple[int, ...]:
    seen: dict[tuple[object, ...], int] = {}
    ids = []
    for begin, end in pairwise((*graph.block_starts, len(graph.tasks))):
        edges = tuple([tuple([i - a for a in graph.tasks[i].after]) for i in range(begin, end)])
        ids.append(seen.setdefault((*slot_of[begin:end], edges), len(seen)))
    return tuple(ids)

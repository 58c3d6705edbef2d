"""Which rows a layer's experts in slots compute, step by step: index arithmetic on the host.

A step is what is computed at a time: the experts in place, then every wave of copied ones. T tokens, k top_k,
E experts, S steps, R rows: (token, choice) pairs whose expert is in a slot, by step, then by slot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOST_GROUPS = 1000  # slots that one grouped matmul goes through; it takes no more than 1,024
Ints = NDArray[np.int64]
Placed = Sequence[tuple[int, int]]  # experts and their slots


@dataclass(frozen=True)
class Steps:
    """step_of, slot_of [E]: when and where an expert is computed; those that are in no slot have step S."""

    step_of: Ints
    slot_of: Ints
    count: int


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of slots [first, last), and where each slot's rows end, counted from start [last - first]."""

    first: int
    last: int
    start: int
    stop: int
    ends: Ints


@dataclass(frozen=True)
class SlotRows:
    """pairs [R]: number of the pair, t k + c; slots [R]; borders [S + 1]: where each step's rows begin, and the end."""

    pairs: Ints
    slots: Ints
    borders: Ints
    top_k: int

    def places(self, size: int) -> Ints:
        """Row of each of `size` pairs [T k]; R for those that are in no slot."""
        found = np.full(size, len(self.pairs), np.int64)
        found[self.pairs] = np.arange(len(self.pairs))
        return found

    def spans(self, step: int) -> Iterator[Span]:
        """A step's rows, in spans of no more slots than a grouped matmul takes."""
        start, end = self.borders[step : step + 2].tolist()
        while start < end:
            first = int(self.slots[start])
            last = min(first + MOST_GROUPS, int(self.slots[end - 1]) + 1)
            stop = start + int(np.searchsorted(self.slots[start:end], last))
            counts = np.bincount(self.slots[start:stop] - first, minlength=last - first)
            yield Span(first, last, start, stop, np.cumsum(counts))
            start = stop

    def each_slot(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Slots of rows [start, stop), within a step, and where each slot's rows begin and end."""
        slots = self.slots[start:stop]
        borders = [*np.flatnonzero(np.diff(slots, prepend=-1)).tolist(), len(slots)]
        for a, b in pairwise(borders):
            yield int(slots[a]), start + a, start + b


def steps_of(steps: Sequence[Placed], num_experts: int) -> Steps:
    """Of experts with their slots, step by step."""
    step_of, slot_of = np.full(num_experts, len(steps), np.int64), np.zeros(num_experts, np.int64)
    for number, placed in enumerate(steps):
        if placed:
            experts, slots = np.array(placed, np.int64).T
            step_of[experts], slot_of[experts] = number, slots
    return Steps(step_of, slot_of, len(steps))


def rows_by_step(experts: Ints, steps: Steps, num_slots: int) -> SlotRows:
    """experts [T, k] -> the pairs whose expert is in a slot at some step."""
    keys = (steps.step_of * num_slots + steps.slot_of)[experts.reshape(-1)]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    borders = np.searchsorted(keys, np.arange(steps.count + 1) * num_slots)
    here = int(borders[-1])
    return SlotRows(order[:here], keys[:here] % num_slots, borders, experts.shape[1])

"""Which expert lies in which slot, and the counts of what a cache did."""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from hrm.predict.cache_plan import CacheCounts, Fetch


class SlotTable:
    """Two arrays that mirror each other, so that no slot holds two experts and no expert two slots.

    Experts are numbered through all layers: number = layer * num_experts + expert. -1: an empty slot, an absent expert.
    """

    def __init__(self, num_layers: int, num_experts: int, num_slots: int) -> None:
        self.num_layers, self.num_experts, self.num_slots = num_layers, num_experts, num_slots
        self.expert_in: NDArray[np.int64] = np.full(num_slots, -1, dtype=np.int64)
        self.slot_of: NDArray[np.int64] = np.full(num_layers * num_experts, -1, dtype=np.int64)
        self.total_hits = 0
        self._unused = np.zeros(num_layers * num_experts, dtype=np.bool_)  # prefetched, and not hit since
        self._counts = {f.name: [0] * num_layers for f in fields(CacheCounts)}

    def put(self, numbers: NDArray[np.int64], slots: NDArray[np.int64], ahead: bool) -> tuple[Fetch, ...]:
        """Copies absent experts into slots, in place of what these held; of several into one, the last remains.

        Slots come in turns: so many distinct ones, then the same again.
        """
        if not len(numbers):
            return ()
        turn = min(len(numbers), len(slots))
        slots = slots[:turn] if turn == len(numbers) else slots[np.arange(len(numbers)) % turn]
        self.drop(slots[:turn])
        self.expert_in[slots[-turn:]], self.slot_of[numbers[-turn:]] = numbers[-turn:], slots[-turn:]
        self._unused[numbers] = ahead
        places = [divmod(number, self.num_experts) for number in numbers.tolist()]
        if ahead:
            for layer, _ in places:
                self._counts["prefetched"][layer] += 1
        return tuple(Fetch(layer, expert, slot) for (layer, expert), slot in zip(places, slots.tolist(), strict=True))

    def drop(self, slots: NDArray[np.int64]) -> None:
        """Empties slots."""
        old = self.expert_in[slots]
        old = old[old >= 0]
        wasted = old[self._unused[old]]
        if len(wasted):
            self._unused[wasted] = False
            for number in wasted.tolist():
                self._counts["wasted"][number // self.num_experts] += 1
        self.slot_of[old] = -1
        self.expert_in[slots] = -1

    def touch(self, layer: int, experts: list[int]) -> list[int]:
        """Counts a layer's touched experts and hits; their slots, -1 where absent."""
        numbers = np.array(experts, dtype=np.int64) + layer * self.num_experts
        slots: list[int] = self.slot_of[numbers].tolist()
        hits = len(slots) - slots.count(-1)
        self._counts["demanded"][layer] += len(slots)
        self._counts["hits"][layer] += hits
        self._unused[numbers] = False
        self.total_hits += hits
        return slots

    def count_missed(self, layer: int, fetched: int, on_cpu: int) -> None:
        """Counts what becomes of a layer's absent experts."""
        self._counts["fetched"][layer] += fetched
        self._counts["on_cpu"][layer] += on_cpu

    def counts(self) -> CacheCounts:
        """A copy of the totals."""
        return CacheCounts(**{name: np.array(values, dtype=np.int64) for name, values in self._counts.items()})

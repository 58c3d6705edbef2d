"""Cache policies with as many slots for every layer: least recently used, least frequently used, static."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.predict.cache_plan import CachePolicy, Fetch
from hrm.predict.cache_slots import SlotTable


class LayerPartitions:
    """Every layer keeps its experts with the largest keys in slots of its own; the rest pass through shared slots.

    (num_slots - top_k) // num_layers slots per layer, the others are shared: a layer computes there what it has to
    fetch but not to keep, and leaves nothing. Keys as in `hrm.predict.routing_replay.trace_cache_stats`. lru: the last
    pass that touched the expert. lfu: how many did. static: the counts given, or without them as lfu.
    """

    def __init__(
        self, table: SlotTable, policy: CachePolicy, top_k: int, counts: NDArray[np.integer[Any]] | None = None
    ) -> None:
        self._table, self._policy, self._fixed = table, policy, counts is not None
        self.slots_per_layer = min((table.num_slots - top_k) // table.num_layers, table.num_experts)
        self._shared = np.arange(self.slots_per_layer * table.num_layers, table.num_slots)
        given = np.zeros((table.num_layers, table.num_experts), np.int64) if counts is None else counts + 1
        self._rank: list[list[int]] = given.tolist()
        self._pass = 0

    def preload(self) -> tuple[Fetch, ...]:
        """The experts that the given counts favour: what to copy before the first pass."""
        if not self._fixed:
            return ()
        favoured = np.argsort(-np.array(self._rank), axis=1, kind="stable")[:, : self.slots_per_layer]
        numbers = (favoured + np.arange(len(favoured))[:, None] * self._table.num_experts).ravel()
        return self._table.put(numbers, np.arange(len(numbers)), ahead=True)

    def begin_pass(self, demand: NDArray[np.float64] | None, following: NDArray[np.float64] | None) -> None:
        """A pass begins, with the shared slots empty; predictions are of no use here."""
        self._pass += 1
        self.complete(0)

    def prefetch(self, layer: int, limit: int | None, room: int | None) -> tuple[Fetch, ...]:
        """Nothing: these policies wait for the gate."""
        return ()

    def worth(self, layer: int) -> list[int]:
        """What each of a layer's experts is worth to the cache [experts]: its key."""
        return self._rank[layer]

    def gate(
        self, layer: int, hits: dict[int, int], misses: list[int], on_cpu: tuple[int, ...] = ()
    ) -> list[tuple[Fetch, ...]]:
        """Copies of a layer's missed experts, in waves. `hits`: expert -> slot; on_cpu: touched too, but not copied."""
        rank, base = self._rank[layer], layer * self._table.num_experts
        if not self._fixed:
            for expert in (*hits, *misses, *on_cpu):
                rank[expert] = self._pass if self._policy == "lru" else rank[expert] + 1
        entering, free = self._kept(layer, set(hits.values()), misses)
        passing = [expert for expert in misses if expert not in entering]
        shared = self._shared.tolist()
        waves = [list(zip(passing[i:], shared, strict=False)) for i in range(0, len(passing), len(shared))] or [[]]
        waves[0] += zip(entering, free, strict=False)
        return [self._put(base, wave) for wave in waves if wave]

    def _put(self, base: int, wave: list[tuple[int, int]]) -> tuple[Fetch, ...]:
        experts, slots = np.array(wave, dtype=np.int64).T
        return self._table.put(base + experts, slots, ahead=False)

    def _kept(self, layer: int, hit_slots: set[int], misses: list[int]) -> tuple[list[int], list[int]]:
        """Missed experts that the layer will keep, and slots for them: first those that hold no hit."""
        first, base, rank = layer * self.slots_per_layer, layer * self._table.num_experts, self._rank[layer]
        inside = enumerate(self._table.expert_in[first : first + self.slots_per_layer].tolist(), first)
        slot_of = {number - base if number >= 0 else ~slot: slot for slot, number in inside}
        resident = [expert for expert in slot_of if expert >= 0]
        best = sorted((*resident, *misses), key=lambda expert: (-rank[expert], expert))[: self.slots_per_layer]
        kept = set(best)
        free = [slot for expert, slot in slot_of.items() if expert not in kept]
        entering = [expert for expert in misses if expert in kept]
        return entering, sorted(free, key=lambda slot: slot in hit_slots)

    def complete(self, layer: int) -> None:
        """The shared slots are given back."""
        self._table.drop(self._shared)

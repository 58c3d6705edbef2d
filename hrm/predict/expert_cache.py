"""Which experts lie in which slots of the GPU, pass after pass: the logic of the expert cache, without tensors."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hrm.errors import PolicyError, ScheduleError, WorkloadError
from hrm.predict.cache_leaving import check_leaving, left_to_cpu
from hrm.predict.cache_partitions import LayerPartitions
from hrm.predict.cache_plan import CacheCounts, CachePolicy, Fetch, GatePlan, Key
from hrm.predict.cache_shared import SharedSlots
from hrm.predict.cache_slots import SlotTable

__all__ = ["CacheCounts", "CachePolicy", "ExpertCache", "Fetch", "GatePlan", "Key"]

Floats = NDArray[np.floating[Any]]


class ExpertCache:
    """Says what to copy where; the caller copies and computes, in the order of the plans that it is given.

    A pass: `begin_pass`, then for every MoE layer in turn `prefetch` (any number of times, or never), `gate`,
    `complete`; after the last layer `prefetch(num_layers)` may fetch for the next pass. A pass may be given up by
    `begin_pass`. Layers and experts count from 0. Same calls, same plans. Policies: `LayerPartitions`, `SharedSlots`.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        num_slots: int,
        policy: CachePolicy,
        top_k: int,
        *,
        counts: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """An empty cache.

        counts: integers [layers, experts], how often experts were demanded elsewhere; only for policy static.

        Raises:
            PolicyError: an unknown policy, fewer slots than top_k, or sizes or counts that cannot be.
        """
        _check_sizes(num_layers, num_experts, num_slots, top_k)
        if policy not in get_args(CachePolicy):
            raise PolicyError(f"expert cache: unknown policy {policy!r}; known: {', '.join(get_args(CachePolicy))}")
        _check_counts(policy, (num_layers, num_experts), counts)
        self._shape = num_layers, num_experts
        self._table = SlotTable(num_layers, num_experts, num_slots)
        self._policy: LayerPartitions | SharedSlots
        if policy == "predictive":
            self._policy = SharedSlots(self._table, top_k)
        else:
            self._policy = LayerPartitions(self._table, policy, top_k, counts)
        self._gated = self._completed = num_layers

    @property
    def stats(self) -> CacheCounts:
        """Totals so far; a copy."""
        return self._table.counts()

    def preload(self) -> tuple[Fetch, ...]:
        """What to copy before the first pass: the experts that given counts favour, otherwise nothing."""
        return self._policy.preload()

    def begin_pass(self, demand: Floats | None, following: Floats | None = None) -> None:
        """Starts a pass. `demand`: [layers, experts], probability that some token of the pass chooses the expert;
        `following`: that some token of the pass after it does. None: nothing is known.

        Raises:
            WorkloadError: a demand of another shape, or with numbers outside [0, 1].
        """
        now, later = (None if d is None else _checked(d, self._shape) for d in (demand, following))
        self._policy.begin_pass(now, later)
        self._gated = self._completed = 0

    def prefetch(self, layer: int, limit: int | None = None, room: int | None = None) -> tuple[Fetch, ...]:
        """What to copy ahead now that all layers before `layer` are complete, most urgent first; predictive only.

        limit: how many copies the link has time for until the next gate; None: not known, so that a copy has to be
        likelier to be worth its while. room: how many copies are asked for at most, however long they take. What is
        returned counts as resident from now on, so a copy that is returned has to be made.

        Raises:
            ScheduleError: `layer` is not the first that is not complete.
            PolicyError: a negative limit or room.
        """
        if layer != self._completed:
            raise ScheduleError(f"expert cache: prefetch of layer {layer}, layer {self._completed} is to complete next")
        if any(number is not None and number < 0 for number in (limit, room)):
            raise PolicyError(f"expert cache: {limit} prefetches, room for {room}; both must be 0 or more")
        return self._policy.prefetch(layer, limit, room)

    def gate(
        self, layer: int, touched: Sequence[int], tokens: Sequence[int] | None = None, copied: float = 1.0
    ) -> GatePlan:
        """How to compute the experts that a layer's router has chosen for the tokens of the pass.

        tokens: how many chose each of `touched`; None: as many. copied: share of the missed experts that is copied, to
        the nearest whole expert; the rest, those of the fewest tokens, and of equals those that the cache wants least
        from then on, is left to the CPU and takes no slot.

        Raises:
            ScheduleError: not the layer's turn, experts out of range or named twice, or tokens of other experts.
            PolicyError: a share outside [0, 1].
        """
        if layer != self._gated or layer != self._completed or layer == self._shape[0]:
            raise ScheduleError(f"expert cache: gate of layer {layer} after {self._completed} complete layers")
        experts = sorted(map(int, touched))
        if (experts and not 0 <= experts[0] <= experts[-1] < self._shape[1]) or len(set(experts)) < len(experts):
            raise ScheduleError(
                f"expert cache: layer {layer} touches {experts}; give each once, of 0 .. {self._shape[1] - 1}"
            )
        check_leaving(len(experts), tokens, copied)
        slots = self._table.touch(layer, experts)
        hits = {expert: slot for expert, slot in zip(experts, slots, strict=True) if slot >= 0}
        misses = [expert for expert, slot in zip(experts, slots, strict=True) if slot < 0]
        on_cpu: tuple[int, ...] = ()
        if copied < 1:
            counts = (
                dict(zip(map(int, touched), tokens, strict=True)) if tokens is not None else dict.fromkeys(misses, 1)
            )
            on_cpu = left_to_cpu(misses, [counts[e] for e in misses], self._policy.worth(layer), copied)
        left = set(on_cpu)
        fetched = [expert for expert in misses if expert not in left]
        self._table.count_missed(layer, len(fetched), len(on_cpu))
        waves = self._policy.gate(layer, hits, fetched, on_cpu)
        self._gated = layer + 1
        return GatePlan(tuple(hits.items()), tuple(waves), on_cpu)

    def complete(self, layer: int) -> None:
        """The layer's experts are computed; their slots may go to later layers.

        Raises:
            ScheduleError: the layer has not had its gate, or is complete already.
        """
        if layer != self._completed or layer != self._gated - 1:
            raise ScheduleError(f"expert cache: layer {layer} complete without its gate; {self._completed} layers are")
        self._policy.complete(layer)
        self._completed = layer + 1


def _check_sizes(num_layers: int, num_experts: int, num_slots: int, top_k: int) -> None:
    if num_layers < 1 or not 1 <= top_k <= num_experts:
        raise PolicyError(
            f"expert cache: {num_layers} layers of {num_experts} experts with top_k {top_k}; at least one "
            "layer, and 1 <= top_k <= experts"
        )
    if num_slots < top_k:
        raise PolicyError(
            f"expert cache: {num_slots} slots cannot hold the {top_k} experts that a token chooses; give at least that"
        )


def _check_counts(policy: CachePolicy, shape: tuple[int, int], counts: NDArray[np.integer[Any]] | None) -> None:
    if counts is None:
        return
    if policy != "static":
        raise PolicyError(f"expert cache: counts are for policy static, not {policy}; leave them out")
    if counts.shape != shape or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise PolicyError(f"expert cache: counts must be integers >= 0 {shape}, not {counts.dtype} {counts.shape}")


def _checked(demand: Floats, shape: tuple[int, int]) -> NDArray[np.float64]:
    if demand.shape != shape:
        raise WorkloadError(f"expert cache: demand {demand.shape} for {shape} layers, experts; predict for this model")
    exact = demand.astype(np.float64)
    if not ((exact >= 0) & (exact <= 1)).all():
        raise WorkloadError("expert cache: demand holds numbers outside 0 .. 1; predictions are probabilities")
    return exact

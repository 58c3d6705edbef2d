"""What an expert cache tells its user: which experts lie where, and what has to be copied to which slot."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

CachePolicy = Literal["lru", "lfu", "static", "predictive"]
Key = tuple[int, int]  # MoE layer, expert


LOOKAHEAD_BYTES = 32 << 20  # of experts copied ahead between two gates. About what fast links bring while a layer does
# not wait for them: more is in the way of corrections and displaces what would have been used (512 MiB moved three
# times the bytes of an LRU cache; 64 MiB cost up to a tenth of a pass in simulation, 16 to 40 MiB are alike)


def lookahead(expert_bytes: float) -> int:
    """Experts that are copied ahead at a time."""
    return max(1, int(LOOKAHEAD_BYTES / expert_bytes))


class Fetch(NamedTuple):
    """A copy of one expert into a slot; what the slot held is gone from then on."""

    layer: int
    expert: int
    slot: int


@dataclass(frozen=True)
class GatePlan:
    """How a layer's touched experts are computed, each exactly once.

    hits: (expert, slot) of those in place. waves: copies of the others. No two copies of a wave share a slot. Slots of
    wave i are free once wave i - 1 is computed, those of wave 0 once the hits are. In wave 0, copies into slots that
    hold no hit come first: they need not wait for the hits. on_cpu: experts that are neither, computed on the CPU.
    """

    hits: tuple[tuple[int, int], ...]
    waves: tuple[tuple[Fetch, ...], ...]
    on_cpu: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class CacheCounts:
    """Totals per MoE layer [layers] since the cache was made, or a difference of such.

    demanded = hits + fetched + on_cpu. fetched: copied after the gate. on_cpu: missed too, and computed on the CPU.
    prefetched: copied ahead of the gate. wasted: prefetched and evicted unused (those not yet used and still resident
    are in neither).
    """

    demanded: NDArray[np.int64]
    hits: NDArray[np.int64]
    fetched: NDArray[np.int64]
    prefetched: NDArray[np.int64]
    wasted: NDArray[np.int64]
    on_cpu: NDArray[np.int64]

    def since(self, earlier: "CacheCounts") -> "CacheCounts":
        """What was counted after `earlier`."""
        pairs: list[Any] = [getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)]
        return CacheCounts(*pairs)

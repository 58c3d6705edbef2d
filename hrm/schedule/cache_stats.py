"""How many of the experts that a pass needs lie on the GPU: given per layer, or expected under uniform routing."""

from dataclasses import dataclass

from hrm.errors import PolicyError
from hrm.roofline.sizes import Sizes
from hrm.schedule.expert_slots import num_expert_slots, prefetchable_share
from hrm.schedule.slice import PassSlice
from hrm.spec.policy import Policy


@dataclass(frozen=True)
class CacheStats:
    """How experts fare in the cache, per layer.

    touched: share of the layer's experts that a pass's tokens choose. hit_rate: share of those that lie on the GPU.
    prefetched: share of those that are copied ahead of the router; empty: none. The rest is copied after it.
    wasted: share of the layer's experts that are copied ahead and not chosen; empty: none. on_cpu: share of the touched
    ones that are not copied but computed on the CPU; empty: 1 - F_g of those that are neither resident nor prefetched.
    forecast_seconds: what the predictor takes before the pass, while nothing else runs; 0: left out.
    """

    touched: tuple[float, ...]
    hit_rate: tuple[float, ...]
    prefetched: tuple[float, ...] = ()
    wasted: tuple[float, ...] = ()
    on_cpu: tuple[float, ...] = ()
    forecast_seconds: float = 0.0

    def prefetched_in(self, layer: int) -> float:
        """Share of a layer's touched experts that are copied ahead."""
        return self.prefetched[layer] if self.prefetched else 0.0

    def wasted_in(self, layer: int) -> float:
        """Share of a layer's experts that are copied ahead for nothing."""
        return self.wasted[layer] if self.wasted else 0.0

    def missed_in(self, layer: int) -> float:
        """Share of a layer's touched experts that its router asks for and no slot holds."""
        return max(0.0, 1.0 - self.hit_rate[layer] - self.prefetched_in(layer))

    def on_cpu_in(self, layer: int, copied: float) -> float:
        """Share of a layer's touched experts that the CPU computes where the share `copied` of the missed is copied."""
        missed = self.missed_in(layer)
        if copied == 1:
            return 0.0
        return min(missed, self.on_cpu[layer]) if self.on_cpu else (1.0 - copied) * missed


def cache_stats(sizes: Sizes, work: PassSlice, policy: Policy, cache: CacheStats | None) -> CacheStats:
    """The statistics given, or those of uniform routing: the hit rate is r_w whatever is replaced.

    Prediction is then taken as perfect: what is not resident is prefetched, as far as slots hold two layers' experts.

    Raises:
        PolicyError: statistics that do not cover every layer, or a cache too small for a token's experts.
    """
    layers = sizes.model.num_layers
    if policy.caches_whole_experts:
        num_expert_slots(sizes, policy)
    if cache is None:
        touched = float(sizes.touched_share(float(work.tokens))) if work.decodes else 1.0
        hit_rate = policy.weights_on_gpu
        stats = CacheStats((touched,) * layers, (hit_rate,) * layers)
        if policy.expert_cache != "predictive":
            return stats
        ahead = min(1.0 - hit_rate, prefetchable_share(sizes, policy, touched))
        return CacheStats(stats.touched, stats.hit_rate, (ahead,) * layers)
    given = (cache.touched, cache.hit_rate, *filter(None, (cache.prefetched, cache.wasted, cache.on_cpu)))
    if wrong := [len(values) for values in given if len(values) != layers]:
        raise PolicyError(
            f"expert cache: statistics cover {wrong[0]} layers, {sizes.model.name} has {layers}; record a "
            "routing trace of this model"
        )
    return cache

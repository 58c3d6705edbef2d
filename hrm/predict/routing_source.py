"""How tokens choose experts, stated or recorded, as cache statistics of a policy's decode pass."""

from dataclasses import dataclass, replace

from hrm.errors import WorkloadError
from hrm.predict.cache_plan import lookahead
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.predicted_cache_stats import predicted_cache_stats, shared_cache_stats
from hrm.predict.routing import uniform_cache_stats, zipf_cache_stats
from hrm.predict.routing_lru import lru_hit_rate
from hrm.predict.routing_replay import Replacement, trace_cache_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.roofline.sizes import Sizes
from hrm.schedule.build import CacheStats
from hrm.schedule.expert_slots import largest_top_k, num_expert_slots, prefetchable_share
from hrm.spec.policy import ExpertCacheMode, Policy

_REPLACED: dict[ExpertCacheMode, Replacement] = {"lru": "lru", "lfu": "lfu", "static": "static"}


@dataclass(frozen=True, eq=False)
class Routing:
    """A Zipf exponent (0: uniform routing), or a trace with or without predictions of it. forecast_seconds: what
    predicting takes before a pass with a predictive cache.
    """

    exponent: float = 0.0
    trace: RoutingTrace | None = None
    predictions: PathPredictions | None = None
    forecast_seconds: float = 0.0

    @property
    def modes(self) -> tuple[ExpertCacheMode, ...]:
        """What an expert cache can be under this knowledge.

        In stated popularity lfu comes to hold what static does; predictions of a trace have to be given.
        """
        if self.trace is None:
            return ("rows", "lru", "static", "predictive")
        known: tuple[ExpertCacheMode, ...] = ("rows", "lru", "lfu", "static")
        return known if self.predictions is None else (*known, "predictive")

    @property
    def predicts_perfectly(self) -> bool:
        """Whether the predictive cache is given the truth, for want of predictions."""
        return self.trace is None

    @property
    def largest_batch(self) -> int | None:
        """Sequences that can be replayed together; None: any number."""
        if self.trace is None:
            return None
        return len(set(self.trace.prompt[self.trace.step > 0].tolist()))


def routed_cache_stats(routing: Routing, sizes: Sizes, policy: Policy) -> CacheStats:
    """Statistics of `batch_size` tokens and the policy's cache.

    "rows": the share r_w of every expert is resident, whichever are chosen. Under stated popularity hit rates are those
    of a cache that copies all that it misses, though what the CPU computes does not enter it; a replay knows.

    Raises:
        WorkloadError: a trace smaller than a batch, a bad exponent, or a predictive cache without predictions.
        PolicyError: slots for fewer experts than a token chooses.
    """
    if routing.trace is not None:
        stats = _replayed(routing, routing.trace, sizes, policy)
    else:
        stats = _stated(routing.exponent, sizes, policy)
    if policy.expert_cache == "rows":
        hits = tuple(policy.weights_on_gpu if touched else 0.0 for touched in stats.touched)
        return replace(stats, hit_rate=hits)
    if policy.expert_cache == "predictive":
        return replace(stats, forecast_seconds=routing.forecast_seconds)
    return stats


def _stated(exponent: float, sizes: Sizes, policy: Policy) -> CacheStats:
    model, tokens, resident = sizes.model, policy.batch_size, policy.weights_on_gpu
    if exponent == 0:
        stats = uniform_cache_stats(model, tokens, resident)
    else:
        stats = zipf_cache_stats(model, tokens, resident, exponent)
    if policy.expert_cache == "lru":
        return replace(stats, hit_rate=_lru_hit_rates(exponent, sizes, policy))
    if policy.expert_cache != "predictive":
        return stats
    layers = zip(stats.touched, stats.hit_rate, strict=True)
    ahead = [min(1 - hit, prefetchable_share(sizes, policy, touched)) if touched else 0.0 for touched, hit in layers]
    return replace(stats, prefetched=tuple(ahead))


def _lru_hit_rates(exponent: float, sizes: Sizes, policy: Policy) -> tuple[float, ...]:
    share, tokens = policy.weights_on_gpu, policy.batch_size
    kinds = [(layer.ffn.num_experts, layer.ffn.top_k) if layer.ffn.is_moe else None for layer in sizes.model.layers]
    found = {kind: lru_hit_rate(*kind, tokens, share * kind[0], exponent) for kind in set(kinds) if kind}
    return tuple(found[kind] if kind else 0.0 for kind in kinds)


def _replayed(routing: Routing, trace: RoutingTrace, sizes: Sizes, policy: Policy) -> CacheStats:
    model, batch = sizes.model, policy.batch_size
    if policy.expert_cache == "rows":
        return trace_cache_stats(trace, model, batch, 0, "lru")
    slots = num_expert_slots(sizes, policy)
    if policy.expert_cache == "predictive":
        if routing.predictions is None:
            raise WorkloadError("--routing: a predictive cache needs predictions of the trace; give --predictions")
        room = lookahead(sizes.expert_page_bytes)
        return predicted_cache_stats(trace, model, batch, slots, routing.predictions, room, policy.experts_on_gpu)
    if policy.experts_on_gpu < 1:
        return shared_cache_stats(trace, model, batch, slots, policy.expert_cache, policy.experts_on_gpu)
    # top_k slots are shared: a layer computes there what it has to fetch but not to keep
    per_layer = min(trace.num_experts, (slots - largest_top_k(sizes)) // model.num_moe_layers)
    return trace_cache_stats(trace, model, batch, per_layer, _REPLACED[policy.expert_cache])

"""From a policy and what a pass carries to its task graph."""

import math

from hrm.errors import PolicyError
from hrm.roofline.linear import pages_ffn
from hrm.roofline.sizes import Sizes
from hrm.schedule.builder import PassBuilder
from hrm.schedule.cache_stats import CacheStats, cache_stats
from hrm.schedule.cached_experts import cached_experts
from hrm.schedule.flexgen import flexgen
from hrm.schedule.graph import TaskGraph
from hrm.schedule.kept_prompts import keeps_prompts
from hrm.schedule.module_batched import module_batched
from hrm.schedule.on_demand import on_demand
from hrm.schedule.pages import PagePlan
from hrm.schedule.pipelined import pipelined
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placement_of
from hrm.schedule.slice import PassSlice
from hrm.spec.policy import Policy

__all__ = ["CacheStats", "build_graph", "page_plan"]

MOST_PAGES = 32  # per layer: enough that filling and draining one page is a small part of a layer


def build_graph(sizes: Sizes, work: PassSlice, policy: Policy, cache: CacheStats | None = None) -> TaskGraph:
    """The tasks of one pass under a policy.

    `cache` (schedule expert_cache only) replaces uniform routing, under which the hit rate is `weights_on_gpu` (and
    prediction perfect).

    Raises:
        PolicyError: the schedule cannot run the policy, its page pool is too small for the pages it streams, its
            expert cache for a token's experts, or cache statistics that do not cover every layer.
    """
    placement = placement_of(policy)
    stats = cache_stats(sizes, work, policy, cache) if placement.overlap == "on_demand" else None
    plan = _page_plan(sizes, work, policy, placement, stats)
    build = PassBuilder(sizes, work, policy, plan, stats.hit_rate if stats else ())
    build.keeps_prompts = placement.spills_hidden_states and keeps_prompts(work, policy.prefill_chunk_tokens)
    build.spills_hidden_states = placement.spills_hidden_states and not build.keeps_prompts
    if stats and policy.caches_whole_experts:
        cached_experts(build, stats)
    elif placement.overlap == "on_demand":
        on_demand(build)
    elif placement.stepwise:
        flexgen(build)
    elif placement.overlap == "phases" and (work.decodes or plan.num_slots < max(plan.per_layer)):
        module_batched(build)
    else:
        pipelined(build, placement.paged, ring=placement.pool_layers is None, ahead=_fetches_ahead(policy, work))
    return build.graph()


def _fetches_ahead(policy: Policy, work: PassSlice) -> bool:
    return work.decodes or policy.weight_prefetch == "always"


def page_plan(sizes: Sizes, work: PassSlice, policy: Policy, cache: CacheStats | None = None) -> PagePlan:
    """The pages that `build_graph` would stream. Raises as it does."""
    placement = placement_of(policy)
    stats = cache_stats(sizes, work, policy, cache) if placement.overlap == "on_demand" else None
    return _page_plan(sizes, work, policy, placement, stats)


def _page_plan(
    sizes: Sizes, work: PassSlice, policy: Policy, placement: Placement, stats: CacheStats | None
) -> PagePlan:
    """Pages of the experts that are computed on the GPU but do not lie there."""
    model = sizes.model
    if policy.caches_whole_experts:
        return PagePlan((0,) * model.num_layers, (0.0,) * model.num_layers, 0, 0)
    computed = policy.experts_on_gpu if work.decodes else 1.0
    shares = [max(0.0, computed - policy.weights_on_gpu)] * model.num_layers
    if stats is not None:
        shares = [t * max(0.0, computed - h) for t, h in zip(stats.touched, stats.hit_rate, strict=True)]
    shares = [share if pages_ffn(model, layer) else 0.0 for share, layer in zip(shares, model.layers, strict=True)]
    layer_bytes = max(shares) * sizes.expert_layer_bytes
    if layer_bytes == 0:
        return PagePlan((0,) * model.num_layers, tuple(shares), 0, 0)
    pages = _pages_per_layer(sizes, len(work.micro_batches), max(shares), layer_bytes, policy, placement)
    per_layer = tuple(pages if share > 0 else 0 for share in shares)
    slots, ahead = _slots(pages, per_layer, layer_bytes / pages, policy, placement)
    return PagePlan(per_layer, tuple(shares), slots, ahead)


def _pages_per_layer(
    sizes: Sizes, micro_batches: int, share: float, layer_bytes: float, policy: Policy, placement: Placement
) -> int:
    """One page per micro-batch where copies are interleaved with theirs, the whole layer, or groups of experts."""
    if placement.pool_layers == 2:
        return min(micro_batches, MOST_PAGES) if placement.paged else 1
    experts = max(1, math.ceil(share * sizes.num_experts_total / sizes.num_expert_layers - 1e-9))
    if placement.pool_layers == 1:
        return min(experts, MOST_PAGES)
    least = math.ceil(2 * layer_bytes / policy.page_pool_bytes - 1e-9) if policy.page_pool_bytes else experts
    return max(1, min(experts, MOST_PAGES), least)


def _slots(
    pages: int, per_layer: tuple[int, ...], page_bytes: float, policy: Policy, placement: Placement
) -> tuple[int, int]:
    """Page slots, and how many pages a pass finds in place: the first layer's, or all that a ring holds but one.

    FlexGen loads a layer's experts beside its attention, the first layer's too.
    """
    if placement.pool_layers == 2:
        from_start = placement.stepwise or policy.weight_prefetch == "within_decode"
        return 2 * pages, 0 if from_start else per_layer[0]
    if placement.pool_layers == 1:
        return pages, 0
    # No more than a pass has: pages of next to no bytes would fit without number.
    slots = math.floor(min(policy.page_pool_bytes / page_bytes + 1e-9, sum(per_layer)))
    least = 2 if pages > 1 else 1
    if slots < least:
        raise PolicyError(
            f"policy: page_pool_bytes {policy.page_pool_bytes:,.0f} holds {slots} pages of {page_bytes:,.0f} bytes; "
            f"schedule {policy.schedule} needs {least}"
        )
    return slots, max(0, slots - 1)

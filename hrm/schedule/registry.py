"""The schedules by name, as the placements that each can run."""

from dataclasses import replace
from itertools import product

from hrm.errors import PolicyError
from hrm.schedule.placement import Overlap, Placement
from hrm.spec.policy import AttentionPlace, ExpertCacheMode, FfnBatching, Policy
from hrm.spec.suggest import unknown_name

AUTO = "auto"

_CORNERS: tuple[AttentionPlace, ...] = ("cpu", "streamed")
_SHARES: tuple[AttentionPlace, ...] = ("cpu", "streamed", "hybrid", "split")
_KV_SHARES: tuple[AttentionPlace, ...] = ("streamed", "resident")

# MoE-Lightning Algorithm 1: attention on the CPU or the GPU (A_g a corner), weights paged into two layers' buffers.
_CGOPIPE = tuple(
    Placement("cgopipe", attention, experts_on_cpu, "micro_batch", False, "full", 2)
    for attention, experts_on_cpu in product(_CORNERS, (False, True))
)
# FlexGen (arXiv 2303.06865), S4 of the MoE-Lightning paper: KV streamed, attention on the GPU.
_FLEXGEN = tuple(
    Placement("flexgen", attention, False, "micro_batch", False, "full", 2, paged=False, stepwise=True)
    for attention in _KV_SHARES
)
# S3: CPU attention that the GPU waits for.
_FLEXGEN_CPU = (
    Placement("flexgen_cpu_attention", "cpu", False, "micro_batch", False, "cpu_serial", 2, paged=False, stepwise=True),
)
# S2: FastDecode (arXiv 2403.11421) with weight streaming; its larger bubbles are the simulator's to show.
_FASTDECODE = (Placement("fastdecode", "cpu", False, "micro_batch", False, "full", 2, paged=False),)
# ZeRO-Inference and accelerate: layers streamed under one batch whose KV stays on the GPU.
_LAYER_STREAMING = (
    Placement("layer_streaming", "resident", False, "micro_batch", False, "full", 2, True, paged=False),
)
# MoE-Gen (arXiv 2503.09716): attention in micro-batches, experts over the batch, an expert ring across layers.
_MODULE_BATCHED = tuple(
    Placement("module_batched", attention, False, "batch", False, "phases", None) for attention in _SHARES
)
# Experts fetched after routing, with what fits kept resident (uniform routing: hit rate = r_w); Fiddler computes misses
# on the CPU.
_EXPERT_CACHE = tuple(
    Placement("expert_cache", "resident", experts_on_cpu, "micro_batch", False, "on_demand", 1, single_micro_batch=True)
    for experts_on_cpu in (False, True)
)
# Whole experts in slots, missed ones copied or in part computed on the CPU. They are not searched unasked: what
# predictions are worth is for a routing trace to say.
_WHOLE: tuple[ExpertCacheMode, ...] = ("lru", "lfu", "static", "predictive")
_CACHED: dict[ExpertCacheMode, tuple[Placement, ...]] = {
    mode: tuple(replace(placement, pool_layers=0, expert_cache=mode) for placement in _EXPERT_CACHE) for mode in _WHOLE
}

_PIPELINES: tuple[tuple[FfnBatching, Overlap, int | None], ...] = (
    ("micro_batch", "full", 2),
    ("batch", "phases", None),
)
_ATTENTION: tuple[AttentionPlace, ...] = ("resident", "streamed", "hybrid", "split")


_NAMED: dict[str, tuple[Placement, ...]] = {
    "cgopipe": _CGOPIPE,
    "module_batched": _MODULE_BATCHED,
    "flexgen": _FLEXGEN,
    "flexgen_cpu_attention": _FLEXGEN_CPU,
    "fastdecode": _FASTDECODE,
    "layer_streaming": _LAYER_STREAMING,
    "expert_cache": _EXPERT_CACHE,
}


def _auto() -> tuple[Placement, ...]:
    """Every combination of the free choices, including prefill mixed into decode passes (MoE-Lens).

    The named schedules beside them do what no free combination does: CPU and GPU in turn (what is left for a batch of
    one), hidden states that stay on the GPU in prefill, experts fetched on demand. Attention on the CPU alone is the
    corner A_g = r_c = 0 of "hybrid", and not listed again.
    """
    free = [
        Placement(AUTO, attention, on_cpu, ffn, mixed, overlap, pool)
        for attention, on_cpu, mixed, (ffn, overlap, pool) in product(
            _ATTENTION, (False, True), (False, True), _PIPELINES
        )
    ]
    return (*free, *_FLEXGEN_CPU, *_LAYER_STREAMING, *_EXPERT_CACHE)


def published_name(placement: Placement) -> str:
    """The published schedule that a free combination happens to be, else its own name."""
    plain = replace(placement, prefill_chunk_tokens=None)
    named = (p.schedule for p in (*_CGOPIPE, *_MODULE_BATCHED) if replace(p, schedule=AUTO) == plain)
    return next(named, placement.schedule)


def schedule_names() -> tuple[str, ...]:
    """Every schedule that can be asked for, `auto` first."""
    return (AUTO, *_NAMED)


def placements(schedule: str) -> tuple[Placement, ...]:
    """The placements of one schedule.

    `auto` holds every free combination, and those named schedules that are none; the others are free combinations, or
    dominated by one row by row.

    Raises:
        UnknownNameError: no such schedule.
    """
    if schedule == AUTO:
        return _auto()
    if schedule not in _NAMED:
        raise unknown_name("schedule", schedule, schedule_names())
    return _NAMED[schedule]


def cache_placements(mode: ExpertCacheMode) -> tuple[Placement, ...]:
    """The placements of schedule expert_cache with one kind of cache."""
    return _EXPERT_CACHE if mode == "rows" else _CACHED[mode]


def placement_of(policy: Policy) -> Placement:
    """The placement that a policy belongs to.

    Raises:
        UnknownNameError: an unknown schedule.
        PolicyError: the schedule cannot run this combination of choices.
    """
    pool = placements(policy.schedule)
    if policy.caches_whole_experts:
        pool = cache_placements(policy.expert_cache)
    attention = policy.attention_place
    if policy.schedule == AUTO and attention == "cpu":
        attention = "hybrid"
    wanted = (attention, policy.ffn_batching, policy.mixed_prefill)
    on_cpu = policy.experts_on_gpu < 1
    matching = [p for p in pool if (p.attention, p.ffn, p.mixed_prefill) == wanted]
    matching = [p for p in matching if p.experts_on_cpu or not on_cpu]
    if not matching:
        raise PolicyError(
            f"policy: schedule {policy.schedule} cannot run attention_place {wanted[0]}, ffn_batching {wanted[1]}, "
            f"mixed_prefill {wanted[2]}, experts_on_gpu {policy.experts_on_gpu:g} together"
        )
    best = min(matching, key=lambda p: p.experts_on_cpu != on_cpu)
    return replace(best, prefill_chunk_tokens=policy.prefill_chunk_tokens)

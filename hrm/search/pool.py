"""The placements that a search goes through: those of the schedule, with prefill chunks that this machine can use."""

from dataclasses import replace

from hrm.predict.rates import CHUNK_GRANULARITY, MAX_CHUNK, Rates
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placements

LARGE_WORKSPACE = 0.04  # share of GPU memory from which a smaller chunk is worth trying
SMALLER, LARGER = 4, 4


def search_pool(rates: Rates, schedule: str) -> tuple[Placement, ...]:
    """Placements with their prefill chunk: the compute-bound one, a quarter of it where its workspace is large, and
    where the profile states a `task_overhead` of the GPU a larger one, which has fewer tasks.

    A batch that generates a single token never decodes, so placements that differ only in decoding are left out.

    Raises:
        UnknownNameError: an unknown schedule.
    """
    base = placements(schedule)
    if rates.workload.gen_len == 1:
        base = tuple(p for p in base if not p.mixed_prefill and not p.experts_on_cpu) or base
    return tuple(replace(p, prefill_chunk_tokens=chunk) for p in base for chunk in chunk_sizes(rates))


def chunk_sizes(rates: Rates) -> tuple[int, ...]:
    """Prefill chunk sizes in tokens that the search tries."""
    chunk, sizes = rates.prefill_chunk_tokens, rates.sizes
    workspace = chunk * (sizes.projection_workspace_bytes + sizes.expert_workspace_bytes)
    smaller = max(CHUNK_GRANULARITY, chunk // SMALLER // CHUNK_GRANULARITY * CHUNK_GRANULARITY)
    larger = (min(LARGER * chunk, MAX_CHUNK),) if rates.machine.task_overhead("gpu") and chunk < MAX_CHUNK else ()
    if workspace <= LARGE_WORKSPACE * rates.machine.gpu_memory_bytes or smaller == chunk:
        return (chunk, *larger)
    return (chunk, smaller, *larger)

"""Turns the solution of a cell's linear program into a policy."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrm.predict.rates import Rates
from hrm.schedule.placement import Placement
from hrm.schedule.registry import AUTO, published_name
from hrm.search.node_programs import Col
from hrm.spec.policy import Policy

ALGORITHM_1_LOOKAHEAD = 2
AUTO_LOOKAHEAD = 4  # simulated on six machines: as good as 6 or 10, and up to 8 % better than 2


def policy_from_solution(
    rates: Rates, placement: Placement, mu: int, batch_size: int, x: NDArray[np.float64]
) -> Policy:
    """The policy at a solved cell; x is [NUM_COLS] with t = 1. Solver noise below 1e-9 is rounded to the bound."""
    experts, weights = _ratio(x[Col.EXPERT_SHARE]), _ratio(x[Col.WEIGHTS])
    attention = _ratio(x[Col.ATTENTION])
    kv = min(_ratio(x[Col.KV]), attention)
    named = _as_run(placement, attention, kv, experts)
    weights = min(weights, experts)
    if placement.expert_cache != "rows" and weights < 1:
        experts = _ratio((experts - weights) / (1 - weights))  # of the missed ones: those that no slot holds
    ffn = batch_size if placement.ffn == "batch" else mu
    by_kernel = placement.schedule == AUTO or placement.expert_cache == "predictive"  # corrections overtake prefetches
    return Policy(
        schedule=named.schedule,
        batch_size=batch_size,
        micro_batch_size=mu,
        ffn_batch_size=ffn,
        attention_on_gpu=attention,
        experts_on_gpu=experts,
        weights_on_gpu=weights,
        kv_on_gpu=kv,
        dense_weights_on_gpu=_ratio(x[Col.DENSE]),
        weights_on_disk=min(_ratio(x[Col.DISK]), 1 - weights),
        attention_place=named.attention,
        ffn_batching=placement.ffn,
        mixed_prefill=placement.mixed_prefill,
        prefill_chunk_tokens=placement.prefill_chunk_tokens or rates.prefill_chunk_tokens,
        page_pool_bytes=max(0.0, float(x[Col.POOL]) * rates.machine.gpu_memory_bytes),
        tensor_parallel_size=rates.machine.tensor_parallel_size,
        attention_lookahead=AUTO_LOOKAHEAD if placement.schedule == AUTO else ALGORITHM_1_LOOKAHEAD,
        hidden_states_by="kernel" if by_kernel else "copy_engine",
        host_weights="page_locked",
        expert_cache=placement.expert_cache,
    )


def _as_run(placement: Placement, attention: float, kv: float, experts: float) -> Placement:
    """The placement by what it came out to be: "cpu" where nothing is attended on the GPU, and the published name."""
    if placement.attention == "hybrid" and attention == kv == 0:
        placement = replace(placement, attention="cpu")
    if experts == 1 and placement.experts_on_cpu:
        return placement
    return replace(placement, schedule=published_name(placement))


def _ratio(value: float) -> float:
    nearest = round(float(value))
    return float(nearest) if abs(value - nearest) < 1e-9 else float(value)

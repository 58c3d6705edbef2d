"""What the closed form cannot weigh, tried by simulation: a little less work for the CPU, larger prefill chunks.

A program balances roofs: it gives the CPU experts until its queue is as long as the link's. In a pass neither queue is
without gaps, so a policy that leaves one of them slack is often faster. And the CPU's rates vary where a link's do not:
its memory and cores serve others too. Chunks of prompts come in few sizes there, and memory that rounding leaves free
serves a larger one.
"""

from collections.abc import Callable, Iterator

from hrm.errors import HrmError
from hrm.predict.closed_form import page_pool_needed, predict
from hrm.predict.rates import CHUNK_GRANULARITY, MAX_CHUNK, Rates
from hrm.search.sensitivity import scaled_rates
from hrm.spec.policy import Policy

CPU_PARTS = (0.25, 0.5, 0.75, 1.0)  # of the CPU's experts, how much goes to the GPU's side
CHUNK_FACTORS = (1.5, 2.0, 3.0, 4.0)
CPU_MARGIN = 0.8  # of the CPU's calibrated rates; in runs of minutes they fell by a fifth now and then (docs/log.md)
Score = Callable[[Policy], float]


def with_margin(rates: Rates) -> Rates:
    """The cost model of a machine whose CPU is slower than calibrated, to choose by but not to promise by."""
    for resource in ("cpu_compute", "cpu_memory_bandwidth"):
        rates = scaled_rates(rates, resource, CPU_MARGIN)
    return rates


def polished(rates: Rates, policy: Policy, score: Score) -> Policy:
    """The policy, or a like one with a higher score: first the share of experts on the CPU, then the prefill chunk.

    score: tokens/s; where it raises HrmError for a like policy (it does not fit, or leaves a request no room), that
    policy is left out.
    """
    best, best_score = policy, score(policy)
    for moves in (_less_on_cpu, _larger_chunks):
        for changed in moves(rates, best):
            try:
                predict(rates, changed)
                found = score(changed)
            except HrmError:
                continue
            if found > best_score:
                best, best_score = changed, found
    return best


def _less_on_cpu(rates: Rates, policy: Policy) -> Iterator[Policy]:
    """Where the CPU has experts and others are streamed: more of them streamed."""
    if not policy.weights_on_gpu < policy.experts_on_gpu < 1 or policy.expert_cache != "rows":
        return
    for part in CPU_PARTS:
        changed = _with(policy, experts_on_gpu=min(1.0, policy.experts_on_gpu + part * (1 - policy.experts_on_gpu)))
        yield _with(changed, page_pool_bytes=max(policy.page_pool_bytes, page_pool_needed(rates, changed)))


def _larger_chunks(rates: Rates, policy: Policy) -> Iterator[Policy]:
    """Chunks up to the largest that any search takes."""
    for factor in CHUNK_FACTORS:
        chunk = int(factor * policy.prefill_chunk_tokens) // CHUNK_GRANULARITY * CHUNK_GRANULARITY
        if policy.prefill_chunk_tokens < chunk <= MAX_CHUNK:
            yield _with(policy, prefill_chunk_tokens=chunk)


def _with(policy: Policy, **changes: float) -> Policy:
    return Policy.model_validate(policy.model_dump() | changes)

"""Policies polished by simulation: never slower by the score, always of the machine's size, the CPU with a margin."""

from functools import cache

import pytest

from hrm.errors import HrmError, PolicyError, WorkloadError
from hrm.predict.closed_form import predict
from hrm.predict.rates import MAX_CHUNK, Rates
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.search.polish import CPU_MARGIN, polished, with_margin
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.workload import make_workload

WORKLOAD = make_workload(128, 77, where="test")
MACHINES = {name: make_rates(load_profile(name), load_model("mixtral-8x7b"), WORKLOAD) for name in ("t4", "h200-16gib")}


@cache
def found_on(machine: str) -> tuple[Policy, ...]:
    return tuple(candidate.policy for candidate in search_policy(MACHINES[machine], "auto", 4).candidates)


def speed(rates: Rates, policy: Policy) -> float:
    return simulate_throughput(Simulator(rates.for_chunk(policy.prefill_chunk_tokens)), policy).generation_throughput


@pytest.mark.parametrize("machine", MACHINES)
def test_a_polished_policy_fits_and_simulates_no_slower(machine: str) -> None:
    """Only the share of the CPU's experts, the pool for what is streamed instead, and the prefill chunk change."""
    rates = MACHINES[machine]
    for policy in found_on(machine):
        better = polished(rates, policy, lambda p: speed(rates, p))
        predict(rates, better)
        assert speed(rates, better) >= speed(rates, policy)
        assert policy.experts_on_gpu <= better.experts_on_gpu <= 1
        assert policy.prefill_chunk_tokens <= better.prefill_chunk_tokens <= MAX_CHUNK
        kept = {"experts_on_gpu", "page_pool_bytes", "prefill_chunk_tokens"}
        assert better.model_dump(exclude=kept) == policy.model_dump(exclude=kept)


def test_the_margin_is_the_cpus_alone() -> None:
    """What it computes and reads slows down, and nothing else."""
    rates = MACHINES["h200-16gib"]
    profile, careful = rates.machine.profile, with_margin(rates).machine.profile
    assert careful.cpu.memory_bandwidth.value == pytest.approx(CPU_MARGIN * profile.cpu.memory_bandwidth.value)
    assert careful.gpu == profile.gpu and careful.links == profile.links


@pytest.mark.parametrize("error", [PolicyError, WorkloadError])
def test_variants_that_cannot_be_weighed_are_left_out(error: type[HrmError]) -> None:
    """As those that do not fit, or that leave a long request no room."""
    rates = MACHINES["t4"]
    policy = next(policy for policy in found_on("t4") if policy.experts_on_gpu < 1)

    def score(tried: Policy) -> float:
        if tried != policy:
            raise error("not this one")
        return 1.0

    assert polished(rates, policy, score) == policy


def test_a_higher_score_is_taken() -> None:
    """Of the share of experts on the CPU, and of the prefill chunk; both as far as the machine has room."""
    rates = MACHINES["h200-16gib"]
    found = found_on("h200-16gib")
    shares = [p for p in found if p.weights_on_gpu < p.experts_on_gpu < 1]
    assert shares
    assert all(polished(rates, p, lambda tried: tried.experts_on_gpu).experts_on_gpu == 1 for p in shares)
    grown = [polished(rates, p, lambda tried: float(tried.prefill_chunk_tokens)) for p in found]
    assert any(
        after.prefill_chunk_tokens > before.prefill_chunk_tokens for after, before in zip(grown, found, strict=True)
    )

"""Refinement: simulated ranking, its agreement with the closed form, and the account of the difference."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from random_instances import instances

from hrm.errors import InfeasibleError
from hrm.predict.gap import explain_gap
from hrm.predict.prediction import predict
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.report.compare import compare_schedules
from hrm.schedule.build import build_graph
from hrm.schedule.registry import schedule_names
from hrm.search.refine import explain_policy, refine, typical_slice
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload_file import load_workload

SATURATED = 0.02  # a saturated pipeline's simulation is within 2 % of the closed form


def rates_of(profile, model="mixtral-8x7b"):
    return make_rates(load_profile(profile), load_model(model), load_workload("mtbench"))


@pytest.mark.parametrize("profile", ["t4", "l4", "a10g", "rtx4090"])
def test_a_saturated_pipeline_reaches_its_closed_form(profile):
    """CGOPipe with the GPU's experts all on the GPU: one queue is always busy, so roofs and simulation agree."""
    rates = rates_of(profile)
    found = search_policy(rates, "cgopipe", top=4)
    policy = next(
        c.policy for c in found.candidates if c.policy.attention_place == "cpu" and c.policy.experts_on_gpu == 1
    )
    simulated = simulate_throughput(Simulator(rates.for_chunk(policy.prefill_chunk_tokens)), policy)
    assert simulated.share_of_roof == pytest.approx(1.0, abs=SATURATED + 0.01)
    work = typical_slice(rates, policy)
    closed = predict(rates, policy).passes[-1].seconds
    assert Simulator(rates).simulate(policy, work).timeline.makespan == pytest.approx(closed, rel=SATURATED)


def test_refinement_ranks_by_simulation_and_finds_what_roofs_hide():
    """On the T4 the roofs prefer experts over the whole batch; its bubbles make the micro-batched policy faster."""
    result = search_policy(rates_of("t4"), "auto", top=4)
    refined = refine(result)
    rates = [entry.simulated.generation_throughput for entry in refined]
    assert rates == sorted(rates, reverse=True)
    assert refined[0].policy.ffn_batching == "micro_batch"
    assert result.policy.ffn_batching == "batch"
    assert refined[0].simulated.closed_form < result.prediction.generation_throughput


@pytest.mark.parametrize("schedule", ["cgopipe", "module_batched", "flexgen", "auto"])
def test_the_gap_adds_up(schedule):
    rates = rates_of("t4")
    gap = explain_policy(rates, search_policy(rates, schedule).policy)
    assert gap.bound + gap.bubbles + gap.latency + gap.contention == pytest.approx(gap.makespan)
    assert gap.bubbles >= -1e-9 * gap.makespan


def test_contention_is_seen_where_dram_is_short():
    """RTX 4090: 57.6 GB/s of DRAM for CPU attention and a 27.7 GB/s link."""
    rates = rates_of("rtx4090")
    policy = search_policy(rates, "cgopipe").policy
    roomy = rates_of("h200")
    assert explain_policy(rates, policy).contention > 0
    assert roomy.machine.cpu_memory_bytes_per_s > rates.machine.cpu_memory_bytes_per_s


def test_every_schedule_is_compared_and_auto_leads():
    rows = compare_schedules(rates_of("t4"))
    assert {row.schedule for row in rows} == set(schedule_names())
    assert rows[0].schedule == "auto"
    assert all(a.throughput >= b.throughput for a, b in pairwise(rows))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(instances())
def test_no_policy_is_simulated_above_its_roofs_by_more_than_the_fill_explains(instance):
    """On-demand fetching overlaps within a layer, and single passes leave out what the closed form counts twice."""
    try:
        policy = search_policy(instance.rates, instance.schedule).policy
    except InfeasibleError:
        return
    rates = instance.rates.for_chunk(policy.prefill_chunk_tokens)
    graph = build_graph(rates.sizes, typical_slice(rates, policy), policy)
    simulation = Simulator(rates).simulate_graph(graph)
    assert simulation.lower_bound_seconds <= simulation.timeline.makespan * (1 + 1e-9)
    assert explain_gap(rates, graph).makespan == pytest.approx(simulation.timeline.makespan)

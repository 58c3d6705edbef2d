"""Runs of many requests: balanced batches, growing contexts, requests of different lengths coming and going."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.errors import PolicyError, WorkloadError
from hrm.predict.batching import balanced_batch
from hrm.predict.generation import simulate_generation
from hrm.predict.in_flight import Group, future_peak_bytes, next_slice
from hrm.predict.kv_table import KvTable
from hrm.predict.requests import Request, workload_requests
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import generation_seconds, simulate_throughput
from hrm.schedule.slice import decode_slice, prefill_slice
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.workload import make_workload
from hrm.spec.workload_file import load_workload


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(make_rates(load_profile("t4"), load_model("mixtral-8x7b"), load_workload("mtbench", 16)))


@pytest.fixture(scope="module")
def policy(simulator) -> Policy:
    return search_policy(simulator.rates, "cgopipe").policy


@pytest.fixture(scope="module")
def mixed(simulator) -> Policy:
    found = search_policy(simulator.rates, "auto", top=4)
    return next(c.policy for c in found.candidates if c.policy.mixed_prefill)


def test_algorithm_2_gives_the_longest_prompt_to_the_emptiest_micro_batch():
    requests = [Request(n, 4) for n in (9, 8, 7, 3, 2, 1)]
    batch = balanced_batch(requests, 3, 2, cache=1000)
    assert [sorted(r.prompt_len for r in mb) for mb in batch.micro_batches] == [[1, 9], [2, 8], [3, 7]]
    assert batch.left_over == ()


def test_algorithm_2_leaves_over_what_exceeds_the_cache():
    batch = balanced_batch([Request(10, 5), Request(9, 5), Request(2, 5)], 1, 5, cache=22)
    assert [r.prompt_len for r in batch.micro_batches[0]] == [10, 2]
    assert [r.prompt_len for r in batch.left_over] == [9]


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 64)), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(500, 5000),
)
def test_algorithm_2_loses_nobody_and_exceeds_nothing(lengths, parts, size, cache):
    requests = [Request(*pair) for pair in lengths]
    batch = balanced_batch(requests, parts, size, cache)
    placed = [r for mb in batch.micro_batches for r in mb]
    assert sorted([*placed, *batch.left_over], key=id) == sorted(requests, key=id)
    for mb in batch.micro_batches:
        assert len(mb) <= size
        assert sum(r.prompt_len + r.gen_len for r in mb) <= cache


def test_workload_requests_keep_the_mean_and_repeat_known_lengths():
    average = workload_requests(make_workload(32, 77.5, 418), 1000)
    assert sum(r.prompt_len for r in average) == 77_500
    padded = workload_requests(make_workload(32, 77, 418, padded=True), 3)
    assert {r.prompt_len for r in padded} == {418}
    known = load_workload("mtbench-questions")
    assert [r.prompt_len for r in workload_requests(known, 160)] == [*known.prompt_lens, *known.prompt_lens]
    with pytest.raises(WorkloadError, match="at least 1"):
        workload_requests(known, 0)


def test_a_run_of_one_batch_is_its_passes_one_by_one(simulator, policy):
    rates = simulator.rates
    run = simulate_generation(simulator, policy, workload_requests(rates.workload, policy.batch_size))
    assert [p.name for p in run.passes] == ["prefill", *["decode"] * 15]
    prefill = simulator.simulate(policy, prefill_slice(policy, rates.workload)).timeline.makespan
    assert run.passes[0].seconds == pytest.approx(prefill, rel=1e-9)
    for step in (1, 7, 15):
        work = decode_slice(policy, rates.workload.prompt_len + step)
        expected = simulator.simulate(policy, work).timeline.makespan
        assert run.passes[step].seconds == pytest.approx(expected, rel=1e-9)
    assert run.generated_tokens == policy.batch_size * 16
    assert run.passes[-1].finished == policy.batch_size
    assert run.total_seconds == pytest.approx(run.fill_seconds + sum(p.seconds for p in run.passes))


def test_sampled_contexts_agree_with_every_single_pass(simulator, policy):
    run = simulate_generation(simulator, policy, workload_requests(simulator.rates.workload, policy.batch_size))
    prefill, decode = generation_seconds(simulator, policy)
    assert prefill == pytest.approx(run.seconds_in("prefill"), rel=1e-9)
    assert decode == pytest.approx(run.seconds_in("decode"), rel=1e-3)
    assert simulate_throughput(simulator, policy).total_seconds == prefill + decode


def test_requests_that_finish_early_leave_and_make_passes_shorter(simulator, policy):
    long = [Request(77, 16)] * 2000
    ragged = [Request(77, 16 if i % 4 == 0 else 4) for i in range(2000)]
    whole = simulate_generation(simulator, policy, long)
    run = simulate_generation(simulator, policy, ragged)
    assert [p.decoding for p in run.passes if p.name == "decode"] == [2000] * 3 + [500] * 12
    assert run.total_seconds < whole.total_seconds
    assert sum(p.finished for p in run.passes) == 2000


def test_more_requests_than_a_batch_take_several(simulator, policy):
    run = simulate_generation(simulator, policy, [Request(77, 2)] * (policy.batch_size + 10))
    assert [p.name for p in run.passes] == ["prefill", "decode"] * 2
    assert [p.finished for p in run.passes] == [0, policy.batch_size, 0, 10]


def test_a_run_waits_for_requests_that_arrive_later(simulator, policy):
    run = simulate_generation(simulator, policy, [Request(77, 2), Request(77, 2, arrival_seconds=1e4)])
    assert run.passes[2].start == 1e4
    assert run.total_seconds > 1e4


def test_steady_mixing_lets_requests_join_as_others_leave(simulator, mixed):
    count = 3 * mixed.batch_size
    run = simulate_generation(simulator, mixed, workload_requests(simulator.rates.workload, count))
    assert sum(p.finished for p in run.passes) == count
    middle = run.passes[len(run.passes) // 2]
    assert middle.name == "mixed"
    assert 0.9 * mixed.batch_size <= middle.decoding + middle.prompt_tokens / 77 <= mixed.batch_size
    steady = simulate_throughput(simulator, mixed).total_seconds / 16
    assert middle.seconds == pytest.approx(steady, rel=0.03)


def test_future_peak_counts_the_longest_moment():
    group = Group()
    group.join([Request(10, 4), Request(20, 2)])
    # after two tokens: (10 + 2) + (20 + 2); after four: 10 + 4
    linear = KvTable(np.arange(200.0), 1.0)
    assert future_peak_bytes([group], [], linear) == 34
    assert future_peak_bytes([group], [Request(100, 8)], linear) == 34 + 102
    assert future_peak_bytes([Group()], [], linear) == 0
    stepwise = KvTable(np.arange(200.0), None)  # the way of windowed models, on the same sizes
    assert future_peak_bytes([group], [Request(100, 8)], stepwise) == 34 + 102
    windowed = KvTable(np.minimum(np.arange(200.0), 15.0), None)
    assert future_peak_bytes([group], [], windowed) == 12 + 15


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=40), st.integers(0, 8))
def test_slices_carry_every_sequence_once(lengths, age):
    policy = Policy.model_validate(_POLICY)
    group = Group()
    group.join([Request(*pair) for pair in lengths])
    for _ in range(age):
        group.advance()
    if not len(group):
        return
    work = next_slice([group], policy)
    decoding = sum(mb.sequences for mb in work.micro_batches)
    assert decoding == (len(group) if age else 0)
    assert sum(mb.prompt_tokens for mb in work.micro_batches) == (0 if age else sum(n for n, _ in lengths))
    assert math.isclose(sum(mb.prompts for mb in work.micro_batches), 0 if age else len(lengths))
    assert all(mb.prompt_tokens <= policy.prefill_chunk_tokens for mb in work.micro_batches)


_POLICY = {
    "schedule": "cgopipe", "batch_size": 40, "micro_batch_size": 20, "ffn_batch_size": 20, "attention_on_gpu": 0.0,
    "experts_on_gpu": 1.0, "weights_on_gpu": 0.0, "kv_on_gpu": 0.0, "dense_weights_on_gpu": 1.0,
    "weights_on_disk": 0.0, "attention_place": "cpu", "ffn_batching": "micro_batch", "mixed_prefill": False,
    "prefill_chunk_tokens": 256, "page_pool_bytes": 6e9, "tensor_parallel_size": 1,
}  # fmt: skip


def test_impossible_runs_are_refused(simulator, policy):
    with pytest.raises(WorkloadError, match="no requests"):
        simulate_generation(simulator, policy, [])
    with pytest.raises(WorkloadError, match=r"a request of 9000004 tokens"):
        simulate_generation(simulator, policy, [Request(9_000_000, 4)])
    huge = policy.model_copy(update={"batch_size": policy.batch_size * 10})
    with pytest.raises(PolicyError, match="more CPU memory"):
        simulate_generation(simulator, huge, [Request(77, 4)])


@pytest.mark.parametrize("model", ["gpt-oss-20b", "llama-4-scout"])
def test_a_batch_of_a_windowed_model_runs_as_one(model):
    """Layers with a sliding window hold less than every token: what the search fits in one batch, a run does too."""
    rates = make_rates(load_profile("rtx4090"), load_model(model), make_workload(4, 4000, 4000))
    policy = search_policy(rates, "flexgen").policy
    simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
    run = simulate_generation(simulator, policy, workload_requests(rates.workload, policy.batch_size))
    prefill, decode = generation_seconds(simulator, policy)
    assert run.total_seconds - run.fill_seconds == pytest.approx(prefill + decode, rel=1e-3)


def test_a_run_begins_with_what_its_first_pass_expects(simulator, policy):
    """CGOPipe prefetches a layer's streamed experts; schedules that fetch on demand begin with nothing."""
    sizes, link = simulator.rates.sizes, simulator.rates.machine.link_bytes_per_s("htod")
    run = simulate_generation(simulator, policy, [Request(77, 2)])
    layer = (1 - policy.weights_on_gpu) * sizes.expert_bytes / sizes.num_expert_layers
    assert run.fill_seconds == pytest.approx(layer / link)
    on_demand = search_policy(simulator.rates, "expert_cache").policy
    assert simulate_generation(simulator, on_demand, [Request(77, 2)]).fill_seconds == 0

"""Whole experts in slots: the order of a pass, what its copies cost, and when an expert cache is worth it.

`python tests/test_cached_experts.py` writes tests/data/schedules/expert_cache_*.txt again; read the difference.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Invoke
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_schedules import LAYER, MODEL, SIZES, VARIANTS, WORKLOAD, pass_slice, policy, tiny_graph

from hrm.errors import PolicyError, ScheduleError, WorkloadError
from hrm.predict.cache_replay import replay, true_predictions
from hrm.predict.closed_form import predict
from hrm.predict.durations import TaskCosts
from hrm.predict.machine import Machine
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.predicted_cache_stats import predicted_cache_stats
from hrm.predict.rates import Rates
from hrm.predict.routing import inclusion_probabilities
from hrm.predict.routing_lru import lru_hit_rate
from hrm.predict.routing_predictions import save_predictions
from hrm.predict.routing_source import Routing, routed_cache_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import save_routing_trace
from hrm.predict.simulate import PassSimulation, Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.roofline.linear import expert_operator
from hrm.roofline.operator import scale
from hrm.roofline.sizes import Sizes
from hrm.schedule.build import CacheStats, build_graph, page_plan
from hrm.schedule.expert_slots import num_expert_slots
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import decode_slice, prefill_slice
from hrm.schedule.task import Kind, Resource
from hrm.schedule.text import dump, load
from hrm.schedule.validate import validate
from hrm.search.cached import best_cached
from hrm.search.crossover import Crossover, crossover
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model import FfnSpec, ModelSpec
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.policy_file import save_policy
from hrm.spec.precision import Precision
from hrm.spec.workload import make_workload

GOLDENS = Path(__file__).parent / "data" / "schedules"
NAMES = ("expert_cache_lru", "expert_cache_predictive", "expert_cache_predictive_on_cpu")
MODES = ("lru", "lfu", "static", "predictive")
PRECISION = Precision("bf16", "bf16", "bf16", "bf16")
PREFETCH, CORRECTION, FFN = Kind.EXPERT_PREFETCH, Kind.EXPERT_CORRECTION, Kind.EXPERT_FFN
DENSE_LAYER = replace(LAYER, ffn=FfnSpec(0, 0, 0, 0, True, 256))
fixed = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def cached(mode: str, **changes: object) -> Policy:
    return policy("expert_cache", "resident", 1, **({"expert_cache": mode, "page_pool_bytes": 0.0} | changes))


def places(graph: TaskGraph, *kinds: Kind) -> list[tuple[Kind, int, int | None]]:
    return [(t.kind, t.layer, t.micro_batch) for t in graph.tasks if t.kind in kinds]


def alternating(layers: int) -> ModelSpec:
    """Experts in every second layer, none in the first."""
    return replace(MODEL, layers=tuple(LAYER if i % 2 else DENSE_LAYER for i in range(layers)))


@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_as_reviewed(name: str):
    text = (GOLDENS / f"{name}.txt").read_text()
    assert dump(tiny_graph(VARIANTS[name])) == text
    validate(load(text))


def test_order_of_a_predictive_pass():
    """Layers 0 and 1 are prefetched before anything is computed, then always the layer after the next router's."""
    graph = tiny_graph(cached("predictive", hidden_states_by="kernel"))
    layer = (Kind.POST_ATTENTION, CORRECTION, FFN, FFN)
    ahead = [(PREFETCH, i, None) for i in range(3)]
    expected = [ahead[0], ahead[1]]
    for i in range(3):
        expected += ahead[i + 1 :][:1] if i else []
        expected += [(kind, i, 0 if kind == Kind.POST_ATTENTION else None) for kind in layer]
    assert places(graph, PREFETCH, *layer) == expected
    correction = [i for i, t in enumerate(graph.tasks) if t.kind == CORRECTION]
    ffn, prefetch = ([i for i, t in enumerate(graph.tasks) if t.kind == kind] for kind in (FFN, PREFETCH))
    tasks = graph.tasks
    assert [tasks[i].after for i in prefetch] == [(), (), (ffn[1],)]
    assert [tasks[ffn[2 * i]].after for i in range(3)] == [
        tuple(sorted((prefetch[i], correction[i] - 1))) for i in range(3)
    ]
    assert [tasks[ffn[2 * i + 1]].after for i in range(3)] == [(correction[i] - 1, correction[i]) for i in range(3)]
    assert {tasks[i].resource for i in correction} == {Resource.ZERO_COPY}
    assert {tasks[i].resource for i in prefetch} == {Resource.HTOD}


def test_other_caches_only_correct():
    for mode in MODES[:-1]:
        graph = tiny_graph(cached(mode))
        assert not places(graph, PREFETCH)
        assert places(graph, CORRECTION) == [(CORRECTION, i, None) for i in range(3)]
        assert all(t.resource == Resource.HTOD for t in graph.tasks if t.kind == CORRECTION)


def test_shares_are_those_of_the_statistics():
    stats = CacheStats((0.5, 0.25, 1.0), (0.5, 1.0, 0.25), (0.25, 0.0, 0.5), (0.0, 0.125, 0.25))
    chosen = cached("predictive")
    graph = build_graph(SIZES, pass_slice(chosen, "decode"), chosen, stats)
    shares = {kind: [t.work.share for t in graph.tasks if t.kind == kind] for kind in (PREFETCH, CORRECTION, FFN)}
    assert shares[PREFETCH] == [0.125, 0.125, 0.75]  # of the layer's experts, with what is never used
    assert shares[CORRECTION] == [0.125, 0.0, 0.25]
    assert shares[FFN] == [0.75, 0.25, 1.0, 0.0, 0.75, 0.25]  # of the experts that tokens choose


def test_order_of_a_pass_whose_misses_are_on_both():
    """Hidden states leave before the gate, the CPU works beside both expert tasks, its result is waited for last."""
    graph = tiny_graph(cached("lru", experts_on_gpu=0.5))
    store, on_cpu, loaded = Kind.HIDDEN_STORE, Kind.CPU_EXPERT_FFN, Kind.HIDDEN_LOAD
    layer = [(store, 0), (CORRECTION, None), (FFN, None), (FFN, None), (on_cpu, 0), (loaded, 0)]
    expected = [(kind, i, j) for i in range(3) for kind, j in layer]
    assert places(graph, *(kind for kind, _ in layer)) == expected
    at = {kind: [i for i, t in enumerate(graph.tasks) if t.kind == kind] for kind, _ in layer}
    tasks = graph.tasks
    assert [tasks[i].after for i in at[on_cpu]] == [(i,) for i in at[store]]
    assert [tasks[i].after for i in at[loaded]] == [(i,) for i in at[on_cpu]]
    entered = [t for t in tasks if t.kind == Kind.PRE_ATTENTION][1:]
    assert [t.after for t in entered] == [(*at[FFN][2 * i : 2 * i + 2], at[loaded][i]) for i in range(2)]


def test_a_pass_of_prompts_leaves_nothing_to_the_cpu():
    both, gpu = (tiny_graph(cached("lru", experts_on_gpu=share), "prefill") for share in (0.25, 1.0))
    assert both == gpu
    assert not places(both, Kind.CPU_EXPERT_FFN)


def test_shares_of_misses_on_the_cpu():
    stats = CacheStats((0.5, 0.25, 1.0), (0.5, 1.0, 0.25), (0.25, 0.0, 0.5))
    chosen = cached("predictive", experts_on_gpu=0.75)
    counted = replace(stats, on_cpu=(0.125, 0.0, 0.25))
    for known, on_cpu in ((stats, [0.0625, 0.0, 0.0625]), (counted, [0.125, 0.0, 0.25])):
        graph = build_graph(SIZES, pass_slice(chosen, "decode"), chosen, known)
        validate(graph)
        tasks = [t.work for t in graph.tasks if t.kind == Kind.CPU_EXPERT_FFN]
        missed = [0.25, 0.0, 0.25]
        assert [work.share for work in tasks] == on_cpu
        assert [work.experts for work in tasks] == [t * c for t, c in zip(stats.touched, on_cpu, strict=True)]
        copied = [t.work.share for t in graph.tasks if t.kind == CORRECTION]
        assert copied == [t * (m - c) for t, m, c in zip(stats.touched, missed, on_cpu, strict=True)]


def test_without_statistics_prediction_is_right_as_far_as_slots_hold_two_layers():
    chosen = cached("predictive", weights_on_gpu=0.75)  # 18 slots of 24; 12 tokens touch 97 % of 8 experts
    graph = tiny_graph(chosen)
    touched = 1 - (1 - 2 / 8) ** 4
    prefetched = [t.work.share for t in graph.tasks if t.kind == PREFETCH]
    assert prefetched == pytest.approx([0.25 * touched] * 3)
    assert [t.work.share for t in graph.tasks if t.kind == CORRECTION] == pytest.approx([0.0] * 3, abs=1e-12)
    tight = tiny_graph(cached("predictive", weights_on_gpu=0.25))  # 6 slots do not hold one layer's
    assert [t.work.share for t in tight.tasks if t.kind == PREFETCH] == [0.0] * 3
    assert [t.work.share for t in tight.tasks if t.kind == CORRECTION] == pytest.approx([0.75 * touched] * 3)


@pytest.mark.parametrize("copied", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("mode", MODES)
def test_all_variants_are_valid(mode: str, copied: float):
    for sizes in (SIZES, Sizes(alternating(5), PRECISION)):
        for devices, queue, share in ((1, "kernel", 0.25), (1, "copy_engine", 1.0), (2, "kernel", 0.5)):
            chosen = cached(mode, hidden_states_by=queue, tensor_parallel_size=devices, weights_on_gpu=share,
                            dense_weights_on_gpu=0.5, prefill_chunk_tokens=9, experts_on_gpu=copied)  # fmt: skip
            for work in (pass_slice(chosen, "decode"), prefill_slice(chosen, WORKLOAD)):
                graph = build_graph(sizes, work, chosen)
                validate(graph)
                assert load(dump(graph)) == graph
                assert graph.pages.per_pass == 0


def test_layers_without_experts_have_no_copies():
    chosen = cached("predictive")
    graph = build_graph(Sizes(alternating(5), PRECISION), pass_slice(chosen, "decode"), chosen)
    assert {layer for _, layer, _ in places(graph, PREFETCH, CORRECTION, FFN)} == {1, 3}


def changed(graph: TaskGraph, kind: Kind, nth: int, **fields: object) -> TaskGraph:
    at = [i for i, t in enumerate(graph.tasks) if t.kind == kind][nth]
    return replace(graph, tasks=(*graph.tasks[:at], replace(graph.tasks[at], **fields), *graph.tasks[at + 1 :]))


def without(graph: TaskGraph, kind: Kind, nth: int, *awaited: Kind) -> TaskGraph:
    task = [t for t in graph.tasks if t.kind == kind][nth]
    return changed(graph, kind, nth, after=tuple(i for i in task.after if graph.tasks[i].kind not in awaited))


GRAPH = tiny_graph(cached("predictive", hidden_states_by="kernel"))
ON_BOTH = tiny_graph(cached("predictive", hidden_states_by="kernel", weights_on_gpu=0.25, experts_on_gpu=0.5))
BROKEN = {
    "before the prefetch": (without(GRAPH, FFN, 0, PREFETCH), "may read slots 0 of predicted experts, MoE layer 0"),
    "before the correction": (without(GRAPH, FFN, 1, CORRECTION), "may read slots of corrected experts, MoE layer 0"),
    "overwritten": (without(GRAPH, PREFETCH, 2, FFN), "writes slots 0 of predicted experts, MoE layer 2 while"),
    "before the router": (without(GRAPH, CORRECTION, 1, Kind.POST_ATTENTION), "may read routed tokens of M0 in L1"),
    "missing": (changed(GRAPH, CORRECTION, 2, layer=1), "expert_correction L1 runs 2 times, not 1"),
    "repeated": (changed(GRAPH, PREFETCH, 2, layer=1), "expert_prefetch L1 runs 2 times, not 1"),
    "micro-batch": (changed(GRAPH, FFN, 1, micro_batch=0), "serves one micro-batch; experts in slots serve all"),
    "CPU before the router": (
        without(ON_BOTH, Kind.HIDDEN_STORE, 1, Kind.POST_ATTENTION),
        "may read routed tokens of M0 in L1",
    ),
    "CPU before its tokens": (without(ON_BOTH, Kind.CPU_EXPERT_FFN, 1, Kind.HIDDEN_STORE), "on the host before"),
    "CPU left out": (without(ON_BOTH, Kind.PRE_ATTENTION, 1, Kind.HIDDEN_LOAD), "hidden state of M0 entering L1"),
    "CPU twice": (changed(ON_BOTH, Kind.CPU_EXPERT_FFN, 2, layer=1), "experts of L1 M0: their shares add up to"),
    "queue": (changed(GRAPH, PREFETCH, 1, resource=Resource.DTOH), "is on queue DTOH; it runs on HTOD"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused(case: str):
    graph, message = BROKEN[case]
    with pytest.raises(ScheduleError, match=message):
        validate(graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cgopipe"}, "expert_cache lru needs schedule expert_cache, not cgopipe"),
        ({"experts_on_gpu": 1.5}, "less than or equal to 1"),
        ({"experts_on_gpu": 0.25, "expert_cache": "rows"}, "weights_on_gpu exceeds experts_on_gpu"),
        ({"weights_on_disk": 0.25}, "needs weights_on_disk 0, not 0.25"),
        ({"host_weights": "pageable"}, "needs host_weights page_locked"),
        ({"expert_cache": "fifo"}, "rows"),
    ],
)
def test_policies_that_are_refused(changes: dict[str, object], message: str):
    values = cached("lru").model_dump()
    with pytest.raises(ValidationError, match=message):
        Policy.model_validate(values | changes)
    streamed = {"attention_place": "streamed", "kv_on_gpu": 0.5}
    with pytest.raises(ValidationError, match="needs attention_place resident"):
        Policy.model_validate(values | streamed)


def test_a_cache_smaller_than_top_k_is_refused():
    assert num_expert_slots(SIZES, cached("lru", weights_on_gpu=2 / 24)) == 2
    small = cached("lru", weights_on_gpu=1.9 / 24)
    for call in (lambda: tiny_graph(small), lambda: page_plan(SIZES, pass_slice(small, "decode"), small)):
        with pytest.raises(PolicyError, match=r"makes 1 slots of 24 experts; .* needs 2, .* raise weights_on_gpu"):
            call()
    dense = Sizes(replace(MODEL, layers=(DENSE_LAYER,) * 3), PRECISION)
    with pytest.raises(PolicyError, match="needs routed experts; tiny has none"):
        build_graph(dense, pass_slice(small, "decode"), small)


def machine_rates(model: ModelSpec = MODEL, **factors: float) -> Rates:
    profile = load_profile("rtx4090")
    for field, factor in factors.items():
        profile = profile.with_scaled(field, factor)
    return Rates(model, WORKLOAD, Machine(profile, PRECISION))


def simulated(rates: Rates, chosen: Policy, stats: CacheStats | None = None, tokens: int = 4) -> PassSimulation:
    return Simulator(rates).simulate(chosen, decode_slice(chosen, 10.0, tokens), stats)


def uniform_stats(
    touched: float, hit: float, prefetched: float = 0.0, wasted: float = 0.0, layers: int = 3
) -> CacheStats:
    return CacheStats((touched,) * layers, (hit,) * layers, (prefetched,) * layers, (wasted,) * layers)


def test_a_copy_costs_its_bytes_and_a_latency_per_expert():
    rates, costs = machine_rates(), TaskCosts(machine_rates())
    chosen = cached("predictive", hidden_states_by="kernel")
    graph = build_graph(SIZES, pass_slice(chosen, "decode"), chosen, uniform_stats(0.5, 0.25, 0.5, 0.125))
    link, wait = rates.machine.link_bytes_per_s("htod"), rates.machine.link_latency("htod")
    expert = SIZES.expert_bytes / 24
    gate = rates.machine.link_latency("dtoh")  # the routers' choice on its way; this profile states no task_overhead
    for kind, experts, waits in ((PREFETCH, 8 * (0.25 + 0.125), 0.0), (CORRECTION, 8 * 0.125, gate)):
        cost = costs.of_task(next(t for t in graph.tasks if t.kind == kind), graph)
        assert cost.seconds == pytest.approx(experts * (expert / link + wait) + waits)
        assert cost.overhead == waits
        assert cost.bytes == cost.dram_bytes == pytest.approx(experts * expert)


def test_experts_that_no_token_misses_cost_nothing():
    profile = load_profile("rtx4090")
    stated = profile.gpu.memory_bandwidth.model_copy(update={"value": 1e-4})  # any number: seconds of a task
    gpu = profile.gpu.model_copy(update={"task_overhead": stated})
    machine = Machine(profile.model_copy(update={"gpu": gpu}), PRECISION)
    costs = TaskCosts(Rates(MODEL, WORKLOAD, machine))
    graph = build_graph(SIZES, pass_slice(cached("lru"), "decode"), cached("lru"), uniform_stats(0.5, 1.0))
    first, second = [costs.of_task(t, graph).seconds for t in graph.tasks if t.kind == FFN][:2]
    assert first == 1e-4
    assert second == 0


def of(simulation: PassSimulation, kind: Kind) -> list[float]:
    tasks = simulation.timeline.graph.tasks
    return [cost.seconds for task, cost in zip(tasks, simulation.costs, strict=True) if task.kind == kind]


def chain(simulation: PassSimulation) -> list[float]:
    """Per layer, seconds from its first task to its routers' end."""
    kinds = (Kind.PRE_ATTENTION, Kind.GPU_ATTENTION, Kind.POST_ATTENTION)
    return [math.fsum(parts) for parts in zip(*(of(simulation, kind) for kind in kinds), strict=True)]


def test_a_pass_on_demand_by_hand():
    """Corrections run beside the experts in place, and everything else in turn."""
    run = simulated(machine_rates(), cached("lru"), uniform_stats(0.75, 0.5))
    ffn, correction = of(run, FFN), of(run, CORRECTION)
    expected = of(run, Kind.EMBEDDING_LOAD)[0] + of(run, Kind.LM_HEAD)[0]
    for i, routed in enumerate(chain(run)):
        expected += routed + max(ffn[2 * i], correction[i]) + ffn[2 * i + 1]
    assert run.timeline.makespan == pytest.approx(expected, rel=1e-9)


def test_a_predicted_pass_by_hand():
    """Copies in their order, each from the end of the experts two layers before on; experts once both are there."""
    run = simulated(machine_rates(), cached("predictive", hidden_states_by="kernel"), uniform_stats(0.75, 0.5, 0.5))
    ffn, prefetch = of(run, FFN)[::2], of(run, PREFETCH)
    computed, copied, begin = [], 0.0, of(run, Kind.EMBEDDING_LOAD)[0] * 1.0
    embedding = next(i for i, t in enumerate(run.timeline.graph.tasks) if t.kind == Kind.EMBEDDING_LOAD)
    now = float(run.timeline.end[embedding])  # shares the wire with the first prefetch
    assert now >= begin
    copied = float(run.timeline.end[0])
    for i, routed in enumerate(chain(run)):
        if i:
            copied = max(copied, computed[i - 2] if i > 1 else 0.0) + prefetch[i]
        now = max(now + routed, copied) + ffn[i]
        computed.append(now)
    assert run.timeline.makespan == pytest.approx(now + of(run, Kind.LM_HEAD)[0], rel=1e-9)


def test_a_pass_with_misses_on_both_by_hand():
    """The CPU computes beside the correction and both expert tasks; the next layer waits for all."""
    run = simulated(machine_rates(), cached("lru", experts_on_gpu=0.5), uniform_stats(0.75, 0.25))
    ffn, correction, on_cpu = of(run, FFN), of(run, CORRECTION), of(run, Kind.CPU_EXPERT_FFN)
    sent, back = of(run, Kind.HIDDEN_STORE), of(run, Kind.HIDDEN_LOAD)
    expected = of(run, Kind.EMBEDDING_LOAD)[0] + of(run, Kind.LM_HEAD)[0]
    for i, routed in enumerate(chain(run)):
        copied = max(ffn[2 * i], correction[i]) + ffn[2 * i + 1]
        expected += routed + max(copied, max(sent[i] + on_cpu[i], correction[i]) + back[i])
    assert run.timeline.makespan == pytest.approx(expected, rel=1e-9)


def test_the_cpu_reads_the_experts_that_are_left_to_it():
    """Of the layer's experts those of the statistics, not those that so many tokens are expected to touch."""
    rates, costs = machine_rates(), TaskCosts(machine_rates())
    chosen = cached("lru", experts_on_gpu=0.5)
    graph = build_graph(SIZES, pass_slice(chosen, "decode"), chosen, uniform_stats(0.5, 0.5))
    task = next(t for t in graph.tasks if t.kind == Kind.CPU_EXPERT_FFN)
    cost = costs.of_task(task, graph)
    read, choices = 8 * 0.5 * 0.25, 4 * 2 * 0.25  # of 8 experts; of 4 tokens' top-2
    assert task.work.share == 0.25
    assert cost.flops == pytest.approx(choices * 2 * 3 * 64 * 128)
    assert cost.bytes == pytest.approx(read * SIZES.expert_bytes / 24 + choices * (2 * 64 + 3 * 128) * 2)
    op = scale(expert_operator(replace(MODEL, layers=(LAYER,)), PRECISION, 4.0), 0.25)
    whole = replace(op, weight_bytes=read * SIZES.expert_bytes / 24)
    assert cost.seconds == pytest.approx(float(rates.machine.seconds("cpu", whole, choices / read)))
    none = build_graph(SIZES, pass_slice(chosen, "decode"), chosen, uniform_stats(0.5, 1.0))
    assert costs.of_task(next(t for t in none.tasks if t.kind == Kind.CPU_EXPERT_FFN), none).flops == 0


def test_what_a_forecast_takes_comes_before_the_pass():
    chosen, stats, work = cached("predictive"), uniform_stats(0.5, 0.5), decode_slice(cached("predictive"), 10.0)
    simulator = Simulator(machine_rates())
    without_it = simulator.pass_seconds(chosen, work, stats)
    assert simulator.pass_seconds(chosen, work, replace(stats, forecast_seconds=0.5)) == without_it + 0.5


def test_right_prediction_hides_copies_behind_long_compute():
    """Of a fast link only the first prefetches are seen, which nothing can hide."""
    rates = machine_rates(replace(MODEL, layers=(LAYER,) * 12), htod=50.0)
    sizes = dict.fromkeys(("batch_size", "micro_batch_size", "ffn_batch_size"), tokens := 2**18)
    chosen = cached("predictive", hidden_states_by="kernel", **sizes)
    resident = simulated(rates, chosen, uniform_stats(1.0, 1.0, layers=12), tokens)
    ahead = simulated(rates, chosen, uniform_stats(1.0, 0.0, 1.0, layers=12), tokens)
    late = simulated(rates, chosen, uniform_stats(1.0, 0.0, layers=12), tokens)
    assert of(ahead, PREFETCH)[0] < chain(ahead)[0]  # compute is long enough
    assert ahead.timeline.makespan - resident.timeline.makespan <= 2 * of(ahead, PREFETCH)[0]
    assert late.timeline.makespan - resident.timeline.makespan == pytest.approx(12 * of(late, CORRECTION)[0])
    assert of(late, CORRECTION)[0] == pytest.approx(of(ahead, PREFETCH)[0] + rates.machine.link_latency("dtoh"))


@settings(fixed, max_examples=60)
@given(st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 64), st.sampled_from((0.1, 1.0, 30.0)))
def test_right_prediction_is_never_slower_than_waiting_for_the_router(
    touched: float, hit: float, tokens: int, link: float
):
    """But for the embeddings, which share the wire with the first prefetch."""
    rates = machine_rates(replace(MODEL, layers=(LAYER,) * 6), htod=link)
    sizes = {"batch_size": tokens, "micro_batch_size": tokens, "ffn_batch_size": tokens}
    lru, predictive = (cached(mode, hidden_states_by="kernel", **sizes) for mode in ("lru", "predictive"))
    late = simulated(rates, lru, uniform_stats(touched, hit, layers=6), tokens)
    ahead = simulated(rates, predictive, uniform_stats(touched, hit, 1 - hit, layers=6), tokens)
    shared = of(late, Kind.EMBEDDING_LOAD)[0]
    assert ahead.timeline.makespan <= (late.timeline.makespan + shared) * (1 + 1e-9)


def test_pass_seconds_are_those_of_the_whole_pass():
    rates = machine_rates(replace(MODEL, layers=(LAYER,) * 24))
    for mode in MODES:
        chosen = cached(mode, hidden_states_by="kernel", weights_on_gpu=0.02)
        work = decode_slice(chosen, 10.0)
        whole = Simulator(rates).simulate(chosen, work, shortcut=False).timeline.makespan
        assert Simulator(rates).pass_seconds(chosen, work) == pytest.approx(whole, rel=1e-9)


def test_lru_hit_rate_is_what_an_lru_cache_hits():
    """Che's approximation against passes drawn at random; 0.04 covers that and the choice without replacement."""
    rng = np.random.default_rng(0)
    for experts, top_k, tokens, slots, exponent in ((8, 2, 1, 4, 1.1), (16, 1, 3, 5, 0.7), (64, 6, 4, 20, 1.1)):
        popularity = np.arange(1, experts + 1) ** -exponent
        last, hits, touches = np.full(experts, -1), 0, 0
        for number in range(1500):
            touched = np.unique([rng.choice(experts, top_k, replace=False, p=popularity / popularity.sum())
                                 for _ in range(tokens)])  # fmt: skip
            resident = np.argsort(-last, kind="stable")[:slots]
            hits += len(np.intersect1d(touched, resident[last[resident] >= 0]))
            touches += len(touched)
            last[touched] = number
        assert lru_hit_rate(experts, top_k, tokens, slots, exponent) == pytest.approx(hits / touches, abs=0.04)
    assert lru_hit_rate(8, 2, 3, 4.0, 0.0) == pytest.approx(0.5)
    assert lru_hit_rate(8, 2, 3, 8.0, 1.0) == 1.0
    assert inclusion_probabilities(8, 2, 0.0).sum() == pytest.approx(2)


def test_stated_routing_of_every_cache():
    sizes = SIZES
    stats = {mode: routed_cache_stats(Routing(1.1), sizes, cached(mode, weights_on_gpu=0.75)) for mode in MODES}
    rows = routed_cache_stats(Routing(1.1), sizes, VARIANTS["expert_cache"])
    assert rows.hit_rate == (0.5,) * 3  # of every expert, popular or not
    assert stats["lfu"] == stats["static"]
    assert 0.75 < stats["lru"].hit_rate[0] < stats["static"].hit_rate[0]
    assert stats["predictive"].hit_rate == stats["static"].hit_rate
    assert stats["predictive"].missed_in(0) == pytest.approx(0.0, abs=1e-12)
    uniform = routed_cache_stats(Routing(), sizes, cached("lru"))
    assert uniform.hit_rate == pytest.approx((0.5,) * 3)


def random_trace(prompts: int, steps: int, seed: int = 0) -> RoutingTrace:
    """Skewed choices of 3 layers, 8 experts, top-2."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, 9) ** -1.0
    rows = prompts * steps
    chosen = [[rng.choice(8, 2, replace=False, p=popularity / popularity.sum()) for _ in range(3)] for _ in range(rows)]
    prompt, step = np.repeat(np.arange(prompts), steps), np.tile(np.arange(1, steps + 1), prompts)
    return RoutingTrace("tiny", 8, np.array(chosen, dtype=np.int16), prompt, step)


def test_replayed_statistics_count_every_copy_once():
    trace = random_trace(8, 12)
    noise, truth = np.random.default_rng(1).random((len(trace.prompt), 3, 8)), true_predictions(trace)
    for predictions in (truth, PathPredictions((0.5 * truth.now + 0.5 * noise).astype(np.float16))):
        stats = predicted_cache_stats(trace, MODEL, 4, 18, predictions)
        whole = replay(trace, 4, 6, "predictive", predictions)
        layers = range(3)
        missed = sum(8 * stats.touched[i] * stats.missed_in(i) for i in layers)
        copied = sum(8 * (stats.touched[i] * stats.prefetched_in(i) + stats.wasted_in(i)) for i in layers)
        assert missed == pytest.approx(whole.fetched)
        assert copied == pytest.approx(whole.prefetched)
        assert all(0 <= stats.prefetched_in(i) + stats.hit_rate[i] <= 1 for i in layers)


@pytest.mark.parametrize("mode", MODES)
def test_replays_leave_a_share_of_the_misses_to_the_cpu(mode: str):
    trace = random_trace(8, 12)
    routing = Routing(trace=trace, predictions=PathPredictions(np.full((len(trace.prompt), 3, 8), 0.25, np.float16)))

    def found(copied: float) -> CacheStats:
        return routed_cache_stats(routing, SIZES, cached(mode, weights_on_gpu=0.5, experts_on_gpu=copied))

    whole, both, none = found(1.0), found(0.5), found(0.0)
    assert not any(whole.on_cpu)
    missed, on_cpu = (sum(map(share, range(3))) for share in (both.missed_in, lambda i: both.on_cpu_in(i, 0.5)))
    assert 0.3 * missed < on_cpu < missed  # whole experts: of a single one all
    assert [none.on_cpu_in(i, 0.0) for i in range(3)] == pytest.approx([none.missed_in(i) for i in range(3)])
    assert both.touched == pytest.approx(whole.touched)
    if mode == "lru":  # what the CPU computes does not come in
        assert none.hit_rate != whole.hit_rate


def test_traces_and_predictions_decide_the_statistics():
    trace = random_trace(8, 12)
    right, chosen = Routing(trace=trace, predictions=true_predictions(trace)), cached("predictive", weights_on_gpu=0.75)
    stats = routed_cache_stats(right, SIZES, chosen)
    assert sum(stats.missed_in(i) for i in range(3)) < 0.1
    lru = routed_cache_stats(right, SIZES, cached("lru", weights_on_gpu=0.75))
    assert sum(lru.missed_in(i) for i in range(3)) > 0.3
    assert Routing(trace=trace).modes == ("rows", "lru", "lfu", "static")
    assert right.modes[-1] == "predictive"
    assert right.largest_batch == 8
    with pytest.raises(WorkloadError, match="needs predictions"):
        routed_cache_stats(Routing(trace=trace), SIZES, chosen)
    with pytest.raises(WorkloadError, match="the trace has 8 prompts with decode steps, a batch 16"):
        crossover(machine_rates(), right, (4, 16))


@pytest.fixture(scope="module")
def qwen() -> Rates:
    """128 experts, 8 per token, 61 GB on a card of 24 GB."""
    return make_rates(load_profile("rtx4090"), load_model("qwen3-30b-a3b"), make_workload(8, 64))


def test_closed_form_knows_the_caches(qwen: Rates):
    for mode in ("lru", "predictive"):
        found = best_cached(qwen, Routing(), mode, 4, experts_on_cpu=False)
        assert found is not None
        closed = predict(qwen, found.policy)
        assert found.policy.expert_cache == mode
        assert found.policy.page_pool_bytes == 0
        assert found.simulated.share_of_roof == pytest.approx(1.0, abs=0.05)
        binding = {"lru": "gpu_and_htod_in_turn", "predictive": "htod"}[mode]
        assert closed.passes[-1].binding[0] == binding
        assert closed.gpu_memory.parts["expert_weights"] == pytest.approx(
            found.policy.weights_on_gpu * qwen.sizes.expert_bytes
        )


def test_the_search_balances_link_and_cpu(qwen: Rates):
    """Whatever the routing, no share of the misses that is tried is faster than the one that is found."""
    for mode in ("lru", "static"):
        for routing in (Routing(), Routing(1.1)):
            both = best_cached(qwen, routing, mode, 8)
            gpu = best_cached(qwen, routing, mode, 8, experts_on_cpu=False)
            assert both is not None
            assert gpu is not None
            assert 0 < both.policy.experts_on_gpu < gpu.policy.experts_on_gpu == 1
            assert both.generation_throughput > 1.2 * gpu.generation_throughput
            simulator = Simulator(qwen.for_chunk(both.policy.prefill_chunk_tokens))
            for share in (0.0, 0.25, 0.5, 0.75):
                other = Policy.model_validate(both.policy.model_dump() | {"experts_on_gpu": share})
                stats = routed_cache_stats(routing, qwen.sizes, other)
                rate = simulate_throughput(simulator, other, stats).generation_throughput
                assert rate <= both.generation_throughput * (1 + 1e-9)
    uniform = best_cached(qwen, Routing(), "lru", 8)
    assert uniform is not None
    assert uniform.simulated.share_of_roof == pytest.approx(1.0, abs=0.05)
    right = best_cached(qwen, Routing(), "predictive", 8)
    assert right is not None
    assert right.policy.experts_on_gpu == 1  # nothing is missed


def test_skew_raises_what_a_cache_of_experts_is_worth(qwen: Rates):
    def rate(routing: Routing, mode: str) -> float:
        found = best_cached(qwen, routing, mode, 2, experts_on_cpu=False)
        assert found is not None
        return found.generation_throughput

    assert rate(Routing(1.1), "lru") > 1.3 * rate(Routing(), "lru")
    assert rate(Routing(1.1), "static") > rate(Routing(1.1), "lru")
    assert rate(Routing(1.1), "predictive") >= rate(Routing(1.1), "static")


@pytest.fixture(scope="module")
def compared(qwen: Rates) -> Crossover:
    return crossover(qwen, Routing(), (4, 512, 1), experts_on_cpu=False)


def test_caches_win_small_batches_of_many_experts_and_streaming_wins_large_ones(compared: Crossover):
    one, four, large = compared.points
    assert [point.batch_size for point in compared.points] == [1, 4, 512]
    for point in (one, four):
        assert point.cached_throughput > 1.5 * point.streaming_throughput
        assert point.winner is not None
        assert point.winner.schedule == "expert_cache"
    assert large.streaming_throughput > large.cached_throughput
    assert large.winner is large.streaming.policy  # type: ignore[union-attr]
    assert compared.batch_size is not None
    assert 4 < compared.batch_size < 512
    assert large.streaming.policy.batch_size <= 512  # type: ignore[union-attr]
    assert all(p.streaming.policy.experts_on_gpu == 1 for p in compared.points if p.streaming)


def test_batch_limit_is_kept(qwen: Rates):
    best = search_policy(qwen).prediction.generation_throughput
    limited = search_policy(qwen, batch_limit=100)
    assert limited.policy.batch_size <= 100
    assert limited.prediction.generation_throughput < best


QWEN = ("-p", "rtx4090", "-m", "qwen3-30b-a3b", "--prompt-len", "64", "--gen-len", "8")


def write_trace(folder: Path) -> tuple[Path, Path]:
    """A trace of 4 prompts, and predictions of it that are right."""
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((16, 48, 128)), axis=-1)[..., :8].astype(np.int16)
    trace = RoutingTrace("qwen3-30b-a3b", 128, chosen, np.repeat(np.arange(4), 4), np.tile(np.arange(1, 5), 4))
    save_routing_trace(trace, folder / "trace.npz")
    save_predictions(true_predictions(trace), trace, folder / "predictions.npz")
    return folder / "trace.npz", folder / "predictions.npz"


def test_crossover_command(hrm: Invoke, tmp_path: Path):
    words = ("crossover", *QWEN, "--batches", "1,512", "--gpu-experts")
    code, out, err = hrm(*words, "--json", "--plot", str(tmp_path / "figure.svg"))
    assert code == 0, err
    report = json.loads(out)
    assert [point["winner"] for point in report["points"]] == ["predictive", "streaming"]
    assert 1 < report["crossing_batch_size"] < 512
    assert report["predicts_perfectly"]
    assert "streaming is faster from" in (tmp_path / "figure.svg").read_text()
    code, out, _ = hrm(*words, "--routing", "zipf:1.2")
    assert code == 0
    assert "Streaming is faster from a batch of about" in out
    code, _, err = hrm(*words, "--schedule", "expert_cache")
    assert code == 1
    assert "streams nothing to compare a cache with" in err


def test_search_and_simulate_take_a_trace_and_predictions(hrm: Invoke, tmp_path: Path):
    trace, predictions = write_trace(tmp_path)
    routing, path = ("--routing", str(trace), "--predictions", str(predictions)), tmp_path / "policy.yaml"
    code, out, err = hrm("search", *QWEN, "--schedule", "flexgen", *routing, "--json", "--output", str(path))
    assert code == 0, err
    caches = json.loads(out)["expert_caches"]
    assert set(caches["cached"]) == {"rows", "lru", "lfu", "static", "predictive"}
    assert max(entry["policy"]["batch_size"] for entry in caches["cached"].values()) == 4  # prompts of the trace
    assert caches["winner"] == "streaming"  # of a batch of thousands
    path.write_text(yaml.safe_dump(caches["cached"]["predictive"]["policy"]))
    rates = {}
    for name, words in (("predicted", routing), ("uniform", ("--routing", "uniform"))):
        code, out, err = hrm("simulate", *QWEN, "--policy", str(path), "--json", *words)
        assert code == 0, err
        rates[name] = json.loads(out)["generation_throughput"]
    assert rates["predicted"] == pytest.approx(caches["cached"]["predictive"]["generation_throughput"])
    assert rates["predicted"] != rates["uniform"]


def test_predicting_takes_its_time_before_every_decode_pass(hrm: Invoke, tmp_path: Path):
    path = tmp_path / "policy.yaml"
    save_policy(cached("predictive", batch_size=4, weights_on_gpu=0.25), path)
    words = ("simulate", *QWEN, "--policy", str(path), "--routing", "zipf:1.1")
    plain, told = (json.loads(hrm(*words, "--json", *more)[1]) for more in ((), ("--forecast-time", "50 ms")))
    assert (plain["forecast_seconds"], told["forecast_seconds"]) == (0.0, 0.05)
    assert told["decode_seconds"] == pytest.approx(plain["decode_seconds"] + 7 * 0.05)  # of --gen-len 8
    assert told["makespan_seconds"] == plain["makespan_seconds"]
    assert "after 50 ms of predicting" in hrm(*words, "--forecast-time", "50 ms")[1]
    gains = {}
    for time in ("0.001 ms", "10 s"):
        code, out, err = hrm("crossover", *QWEN, "--batches", "4", "--gpu-experts", "--forecast-time", time, "--json")
        assert code == 0, err
        gains[time] = json.loads(out)["points"][0]["winner"]
    assert gains["0.001 ms"] == "predictive" != gains["10 s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "--forecast-time", "5 ms"), "--forecast-time is of a predictive cache; give --routing"),
        (("search", "--routing", "uniform", "--forecast-time", "5"), "--forecast-time"),
        (("simulate", "--forecast-time", "5 ms"), "--forecast-time: needs --routing, and a policy with expert_cache"),
        (("search", "--predictions", "p.npz"), "are of a routing trace; give that to --routing"),
        (("search", "--routing", "uniform", "--predictions", "p.npz"), "are of a routing trace"),
        (("crossover", "--batches", "0"), "give whole numbers from 1 on"),
        (("crossover", "--routing", "zipf"), "unknown form 'zipf'"),
    ],
)
def test_bad_options_are_refused(hrm: Invoke, words: tuple[str, ...], message: str):
    code, _, err = hrm(words[0], *QWEN, *words[1:])
    assert code == 1
    assert message in " ".join(err.split())


if __name__ == "__main__":
    for golden in NAMES:
        (GOLDENS / f"{golden}.txt").write_text(dump(tiny_graph(VARIANTS[golden])))

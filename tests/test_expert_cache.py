"""Plans of the expert cache can be carried out as they stand, and its replays agree with the reference statistics."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_schedules import LAYER, MODEL

from hrm.errors import PolicyError, ScheduleError, WorkloadError
from hrm.predict.cache_replay import CacheReplay, replay, true_predictions
from hrm.predict.expert_cache import CachePolicy, ExpertCache, Fetch, GatePlan
from hrm.predict.path_predictions import PathPredictions, batch_demand
from hrm.predict.routing_replay import trace_cache_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.model import FfnSpec, ModelSpec

POLICIES: tuple[CachePolicy, ...] = get_args(CachePolicy)


def skewed_trace(
    layers: int = 4, experts: int = 12, top_k: int = 2, prompts: int = 16, steps: int = 12, seed: int = 0
) -> RoutingTrace:
    """Every prompt prefers some experts of every layer; one prefill token each."""
    rng = np.random.default_rng(seed)
    liking = np.repeat(rng.gumbel(size=(prompts, layers, experts)), steps + 1, axis=0)
    chosen = np.argsort(-liking - rng.gumbel(size=liking.shape), axis=-1)[..., :top_k]
    prompt, step = np.repeat(np.arange(prompts), steps + 1), np.tile(np.arange(steps + 1), prompts)
    return RoutingTrace("tiny", experts, chosen, prompt, step)


def model_of(trace: RoutingTrace) -> ModelSpec:
    layer = replace(LAYER, ffn=FfnSpec(trace.num_experts, trace.experts.shape[2], 128, 0, True))
    return replace(MODEL, layers=(layer,) * trace.experts.shape[1])


class Memory:
    """Carries out what a cache says, and checks that it can be: slots hold what they are said to hold."""

    def __init__(self, num_slots: int, strict: bool) -> None:
        self.strict = strict  # other policies forget what passed through shared slots
        self.slots: list[tuple[int, int] | None] = [None] * num_slots
        self.log: list[object] = []

    def copy(self, fetches: tuple[Fetch, ...]) -> None:
        self.log.append(fetches)
        assert len({fetch.slot for fetch in fetches}) == len(fetches)
        for fetch in fetches:
            if (fetch.layer, fetch.expert) in self.slots:
                assert not self.strict, "an expert in two slots"
                self.slots[self.slots.index((fetch.layer, fetch.expert))] = None
            self.slots[fetch.slot] = fetch.layer, fetch.expert

    def compute(self, layer: int, plan: GatePlan) -> list[int]:
        """The experts computed, in order; hits first, then wave after wave."""
        hit_slots = {slot for _, slot in plan.hits}
        assert all(self.slots[slot] == (layer, expert) for expert, slot in plan.hits)
        computed = [expert for expert, _ in plan.hits]
        if plan.waves:
            waits = [fetch.slot in hit_slots for fetch in plan.waves[0]]
            assert waits == sorted(waits), "what need not wait for the hits comes first"
        for wave in plan.waves:
            assert wave
            self.copy(wave)
            computed += [fetch.expert for fetch in wave]
        return computed


@st.composite
def cases(draw: st.DrawFn) -> tuple[CachePolicy, int, int, int, int, int, bool]:
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    top_k = draw(st.integers(1, min(3, experts)))
    slots = draw(st.integers(top_k, layers * experts + 3))
    return draw(st.sampled_from(POLICIES)), layers, experts, top_k, slots, draw(st.integers(0, 99)), draw(st.booleans())


SHARES = ((1.0,), (0.0, 0.5, 1.0), (0.0,), (0.25, 0.6, 1.0))  # of missed experts copied, pass by pass


def check_fewest(tokens: dict[int, int], plan: GatePlan) -> None:
    """No expert on the CPU has more tokens than one that is copied."""
    most = max((tokens[expert] for expert in plan.on_cpu), default=0)
    assert all(tokens[fetch.expert] >= most for wave in plan.waves for fetch in wave)


def drive(policy: CachePolicy, layers: int, experts: int, top_k: int, slots: int, seed: int, predict: bool) -> Memory:
    """Four random passes, the second of them given up after its first layer."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, (layers, experts)) if policy == "static" and predict else None
    cache, memory = (
        ExpertCache(layers, experts, slots, policy, top_k, counts=counts),
        Memory(slots, policy == "predictive"),
    )
    memory.copy(cache.preload())
    demanded, ahead = 0, sum(slot is not None for slot in memory.slots)
    for number in range(4):
        cache.begin_pass(rng.random((layers, experts)) if predict else None)
        for layer in range(1 if number == 1 else layers):
            limit = None if rng.random() < 0.5 else int(rng.integers(0, 3))
            fetches = cache.prefetch(layer, limit)
            assert limit is None or len(fetches) <= limit
            memory.copy(fetches)
            touched = rng.permutation(experts)[: rng.integers(0, experts + 1)].tolist()
            copied, before = float(rng.choice(SHARES[number])), cache.stats.fetched[layer]
            tokens = rng.integers(1, 5, len(touched)).tolist()
            plan = cache.gate(layer, touched, tokens, copied)
            missed = len(touched) - len(plan.hits)
            assert abs(len(plan.on_cpu) - (1 - copied) * missed) <= 0.5
            assert sum(map(len, plan.waves)) == missed - len(plan.on_cpu) == cache.stats.fetched[layer] - before
            check_fewest(dict(zip(touched, tokens, strict=True)), plan)
            assert sorted([*memory.compute(layer, plan), *plan.on_cpu]) == sorted(touched)
            assert not memory.strict or not any((layer, expert) in memory.slots for expert in plan.on_cpu), (
                "on the CPU and in a slot"
            )
            in_use = {slot for _, slot in plan.hits} | {fetch.slot for wave in plan.waves for fetch in wave}
            beside = cache.prefetch(layer, 2)
            assert in_use.isdisjoint(fetch.slot for fetch in beside), "would overwrite what is being computed"
            assert not {(f.layer, f.expert) for f in beside} & {(layer, expert) for expert in plan.on_cpu}
            memory.copy(beside)
            cache.complete(layer)
            demanded, ahead = demanded + len(touched), ahead + len(fetches) + len(beside)
    stats = cache.stats
    assert (stats.demanded == stats.hits + stats.fetched + stats.on_cpu).all()
    assert (stats.wasted <= stats.prefetched).all()
    assert (stats.demanded.sum(), stats.prefetched.sum()) == (demanded, ahead)
    return memory


@settings(max_examples=150, deadline=None)
@given(cases())
def test_plans_can_be_carried_out_and_repeat(case: tuple[CachePolicy, int, int, int, int, int, bool]) -> None:
    assert drive(*case).log == drive(*case).log


@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_slot_for_every_expert_nothing_is_copied_twice(policy: CachePolicy) -> None:
    trace = skewed_trace()
    found = replay(trace, 4, 12, policy, fetches_per_layer=0)
    assert found.hit_rate > 0.9 and found.prefetched == found.wasted == 0
    assert found.fetched * found.passes <= 4 * 12


@pytest.mark.parametrize("slots", [0, 1, 3, 7, 12])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("policy", ["lru", "lfu", "static"])
def test_hit_rates_are_those_of_the_reference(policy: CachePolicy, batch_size: int, slots: int) -> None:
    trace = skewed_trace()
    assert policy != "predictive"
    reference = trace_cache_stats(trace, model_of(trace), batch_size, slots, policy)
    found = replay(trace, batch_size, slots, policy)
    assert found.layer_hit_rate == pytest.approx(reference.hit_rate, abs=1e-12)
    assert [distinct / 12 for distinct in found.layer_distinct] == pytest.approx(reference.touched)
    assert found.prefetched == found.wasted == 0


def predictive(trace: RoutingTrace, slots: int, rate: float | None, recall: float = 1.0) -> CacheReplay:
    """Calibrated predictions: each is right with probability `recall`."""
    rng, k = np.random.default_rng(1), trace.experts.shape[2]
    guess = np.where(rng.random(trace.experts.shape) < recall, trace.experts, rng.integers(0, 12, trace.experts.shape))
    rest = (1 - recall) * k / (12 - k)
    said = np.full((*trace.experts.shape[:2], 12), rest)
    np.put_along_axis(said, guess, recall, axis=-1)
    return replay(trace, 4, slots, "predictive", PathPredictions(said), rate)


def test_the_truth_fetched_in_time_leaves_nothing_for_the_gate() -> None:
    trace = skewed_trace()
    found = replay(trace, 4, 8, "predictive", true_predictions(trace))
    assert found.hit_rate == 1.0 and found.fetched == 0


def test_hit_rates_rise_with_the_link_with_recall_and_with_slots() -> None:
    trace = skewed_trace()
    lru = replay(trace, 4, 6, "lru").hit_rate
    by_link = [predictive(trace, 6, rate, 0.9).hit_rate for rate in (0.0, 0.5, 1.0, 2.0)]
    by_recall = [predictive(trace, 6, 2.0, recall).hit_rate for recall in (0.3, 0.6, 0.9, 1.0)]
    by_slots = [predictive(trace, slots, 1.0, 0.9).hit_rate for slots in (3, 6, 9)]
    assert by_link == sorted(by_link) and by_recall == sorted(by_recall) and by_slots == sorted(by_slots)
    assert by_link[-1] > lru + 0.15


def test_knowing_the_next_pass_keeps_what_it_will_use() -> None:
    trace = skewed_trace()
    truth = true_predictions(trace)
    for rate in (0.0, 0.5, 1.0):
        alone, both = (replay(trace, 4, 6, "predictive", p, rate) for p in (PathPredictions(truth.now), truth))
        assert (
            both.hit_rate > alone.hit_rate + 0.02 and both.fetched + both.prefetched < alone.fetched + alone.prefetched
        )


def test_what_follows_stays_and_what_does_not_goes() -> None:
    cache = ExpertCache(1, 4, 2, "predictive", 1)
    for touched, following in ([0, 1], [0.0, 1.0, 1.0, 0.0]), ([2], [0.0, 1.0, 0.0, 0.0]):
        cache.begin_pass(np.array([[1.0 if expert in touched else 0.0 for expert in range(4)]]), np.array([following]))
        cache.gate(0, touched)
        cache.complete(0)
    cache.begin_pass(None)
    assert dict(cache.gate(0, [0, 1, 2]).hits).keys() == {1, 2}


def test_wrong_predictions_of_the_next_pass_do_little_harm() -> None:
    """They are set against what came, and after some passes not believed."""
    trace, rng = skewed_trace(), np.random.default_rng(3)
    truth = true_predictions(trace)
    wrong = PathPredictions(truth.now, rng.permutation(1 - true_predictions(trace).now))
    none, misled = (replay(trace, 4, 6, "predictive", p, 1.0).hit_rate for p in (PathPredictions(truth.now), wrong))
    assert misled > none - 0.05


def test_the_link_copies_no_more_than_it_can() -> None:
    trace = skewed_trace()
    assert predictive(trace, 6, 0.0).prefetched == 0
    assert predictive(trace, 6, 0.25).prefetched <= 0.25 * 4 + 1 / 40  # 4 layers, and a copy begun in the first pass


def test_slots_go_to_the_layers_in_the_order_of_need() -> None:
    cache = ExpertCache(3, 4, 4, "predictive", 1)
    cache.begin_pass(np.array([[0.9, 0.1, 0.8, 0.2], [0.0, 0.7, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    assert [(fetch.layer, fetch.expert) for fetch in cache.prefetch(0)] == [(0, 0), (0, 2), (1, 1), (2, 0)]
    assert cache.gate(0, [0, 2]).waves == ()
    assert cache.prefetch(0) == ()  # what is being computed cannot be displaced, what is needed sooner is not
    cache.complete(0)
    later = cache.prefetch(1)  # slots of layer 0 are free for layer 2
    assert [(fetch.layer, fetch.expert) for fetch in later] == [(2, 1)]


def test_a_missed_expert_takes_the_slot_of_a_mispredicted_one() -> None:
    cache = ExpertCache(2, 4, 3, "predictive", 1)
    cache.begin_pass(np.array([[0.9, 0.8, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]]))
    slot = {(fetch.layer, fetch.expert): fetch.slot for fetch in cache.prefetch(0)}
    plan = cache.gate(0, [0, 3])
    assert plan == GatePlan(((0, slot[0, 0]),), ((Fetch(0, 3, slot[0, 1]),),))


def test_more_experts_than_slots_go_in_waves() -> None:
    cache = ExpertCache(1, 8, 2, "lru", 2)
    cache.begin_pass(None)
    plan = cache.gate(0, range(5))
    assert [[fetch.expert for fetch in wave] for wave in plan.waves] == [[0, 1], [2, 3], [4]]


def test_the_cpu_takes_the_fewest_tokens_then_what_the_cache_wants_least() -> None:
    cache = ExpertCache(1, 8, 4, "lfu", 1)
    for touched in ([5], [5, 6], []):
        cache.begin_pass(None)
        cache.gate(0, touched, None, 0.0)
        cache.complete(0)
    cache.begin_pass(None)
    plan = cache.gate(0, [5, 6, 7, 1], [1, 1, 1, 3], 0.5)  # 5 was asked for twice, 6 once
    assert plan.on_cpu == (6, 7)
    assert [[fetch.expert for fetch in wave] for wave in plan.waves] == [[1, 5]]
    assert cache.stats.on_cpu.tolist() == [5]


def test_what_the_cpu_computes_does_not_enter_the_cache() -> None:
    for policy in POLICIES:
        cache = ExpertCache(2, 4, 8, policy, 1)
        for _ in range(3):
            cache.begin_pass(None)
            for layer in range(2):
                assert cache.gate(layer, [0, 3], [1, 1], 0.0) == GatePlan((), (), (0, 3))
                cache.complete(layer)
        assert cache.stats.on_cpu.tolist() == [6, 6] and cache.stats.fetched.sum() == 0


def test_demand_of_a_batch() -> None:
    tokens = np.array([[[0.5, 0.0, 1.0]], [[0.5, 0.25, 0.5]]])
    assert batch_demand(tokens) == pytest.approx(np.array([[0.75, 0.25, 1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_slots": 1}, "1 slots cannot hold the 2 experts that a token chooses"),
        ({"policy": "mru"}, "unknown policy 'mru'; known: lru"),
        ({"top_k": 5}, "top_k 5"),
        ({"num_layers": 0}, "at least one layer"),
        ({"counts": np.zeros((2, 4), np.int64)}, "for policy static"),
        ({"policy": "static", "counts": np.zeros((2, 3), np.int64)}, "must be integers"),
    ],
)
def test_impossible_caches_are_refused(change: dict[str, object], message: str) -> None:
    sizes = {"num_layers": 2, "num_experts": 4, "num_slots": 4, "policy": "predictive", "top_k": 2}
    with pytest.raises(PolicyError, match=message):
        ExpertCache(**(sizes | change))  # type: ignore[arg-type]


def test_calls_out_of_turn_are_refused() -> None:
    cache = ExpertCache(2, 4, 4, "predictive", 1)
    with pytest.raises(ScheduleError, match="gate of layer 0"):
        cache.gate(0, [1])
    cache.begin_pass(None)
    with pytest.raises(ScheduleError, match="complete without its gate"):
        cache.complete(0)
    with pytest.raises(ScheduleError, match="prefetch of layer 1"):
        cache.prefetch(1)
    with pytest.raises(ScheduleError, match="tokens of 2 experts, 1 are touched"):
        cache.gate(0, [1], [3, 4], 0.5)
    with pytest.raises(PolicyError, match=r"copied 1\.5 of the missed"):
        cache.gate(0, [1], [3], 1.5)
    for wrong in ([4], [-1], [1, 1]):
        with pytest.raises(ScheduleError, match="give each once"):
            cache.gate(0, wrong)
    cache.gate(0, [1])
    with pytest.raises(ScheduleError, match="gate of layer 0"):
        cache.gate(0, [1])
    with pytest.raises(WorkloadError, match="predict for this model"):
        cache.begin_pass(np.zeros((3, 4)))
    with pytest.raises(WorkloadError, match="outside 0"):
        cache.begin_pass(np.full((2, 4), np.nan))


def test_replays_that_cannot_be_are_refused() -> None:
    trace = skewed_trace()
    with pytest.raises(PolicyError, match="13 slots per layer"):
        replay(trace, 4, 13, "lru")
    with pytest.raises(PolicyError, match="0 slots cannot hold"):
        replay(trace, 4, 0, "predictive")
    with pytest.raises(PolicyError, match="fetches per layer"):
        replay(trace, 4, 3, "predictive", fetches_per_layer=-1.0)
    with pytest.raises(WorkloadError, match="predict this trace"):
        replay(trace, 4, 3, "predictive", true_predictions(trace).rows(slice(1, None)))
    with pytest.raises(WorkloadError, match="16 prompts with decode steps, a batch 17"):
        replay(trace, 17, 3, "lru")

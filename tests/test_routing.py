"""Routing traces are checked, and replayed as by hand; distributions agree with the built-in one and brute force."""

import math
from dataclasses import replace
from itertools import combinations, permutations, product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_schedules import LAYER, MODEL, NAMED, WORKLOAD
from tiny_schedules import policy as tiny_policy

from hrm.cli.routing_option import read_cache_stats
from hrm.errors import WorkloadError
from hrm.predict.rates import Rates
from hrm.predict.routing import MAX_EXPONENT, inclusion_probabilities, uniform_cache_stats, zipf_cache_stats
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_replay import Replacement, trace_cache_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import REQUIRED, load_routing_trace, save_routing_trace
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import generation_seconds
from hrm.roofline.sizes import Sizes
from hrm.schedule.build import CacheStats, build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import decode_slice
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model import FfnSpec, ModelSpec
from hrm.spec.model_config import load_model
from hrm.spec.precision import Precision, choose_precision
from hrm.spec.workload_file import load_workload

POLICIES: tuple[Replacement, ...] = get_args(Replacement)
DENSE = replace(LAYER, ffn=FfnSpec(0, 0, 128, 0, True))
PRECISION = Precision("bf16", "bf16", "bf16", "bf16")


def moe(num_experts: int, top_k: int = 1, num_layers: int = 1) -> ModelSpec:
    layer = replace(LAYER, ffn=FfnSpec(num_experts, top_k, 128, 0, True))
    return replace(MODEL, layers=(layer,) * num_layers)


def one_layer_trace(num_experts: int, *prompts: list[int]) -> RoutingTrace:
    """Top-1 choices of every prompt's decode steps."""
    experts = np.array([expert for choices in prompts for expert in choices]).reshape(-1, 1, 1)
    prompt = np.array([i for i, choices in enumerate(prompts) for _ in choices])
    step = np.array([k + 1 for choices in prompts for k in range(len(choices))])
    return RoutingTrace("tiny", num_experts, experts, prompt, step)


def random_trace(model: ModelSpec, prompts: int, steps: int, seed: int = 0, exponent: float = 0.0) -> RoutingTrace:
    """Experts drawn one after the other without replacement, popularity ~ rank^-exponent; one prefill token each."""
    rng, ffn = np.random.default_rng(seed), model.layers[-1].ffn
    popularity = np.arange(1, ffn.num_experts + 1.0) ** -exponent
    clocks = rng.exponential(size=(prompts * (steps + 1), model.num_moe_layers, ffn.num_experts)) / popularity
    experts = np.argsort(clocks, axis=-1)[..., : ffn.top_k].astype(np.int16)
    prompt, step = np.repeat(np.arange(prompts), steps + 1), np.tile(np.arange(steps + 1), prompts)
    weights = rng.random(experts.shape, dtype=np.float32)
    return RoutingTrace(model.name, ffn.num_experts, experts, prompt, step, weights)


def hit_rate(trace: RoutingTrace, batch_size: int, slots: int, policy: Replacement) -> float:
    stats = trace_cache_stats(trace, moe(trace.num_experts), batch_size, slots, policy)
    assert len(stats.touched) == len(stats.hit_rate) == 1
    return stats.hit_rate[0]


# --- replay, by hand ---


@pytest.mark.parametrize(
    ("policy", "hits"),
    [
        ("lru", 0),  # a cycle longer than the cache
        ("lfu", 2),  # all equal: 0 and 1 stay, 2 never gets in
        ("static", 4),  # after the first pass 1 and 2 are used twice, 0 once
        ("belady", 4),  # 1 and 2 in place, 0 not worth keeping
    ],
)
def test_a_cycle_of_three_experts_through_two_slots(policy: Replacement, hits: int) -> None:
    trace = one_layer_trace(3, [0, 1, 2, 0, 1, 2])
    assert hit_rate(trace, 1, 2, policy) == hits / 5
    assert trace_cache_stats(trace, moe(3), 1, 2, policy).touched == pytest.approx((1 / 3,))


@pytest.mark.parametrize(
    ("policy", "hits"),
    [
        ("lru", 2),  # {0}, 1 in, 0 in, 0, 2 in, 0 in, 2 in, 2: the two immediate repeats
        ("lfu", 3),  # 0 leads from its second use on: hits at 0 0 0 but not at the 2s
        ("static", 3),  # 0 and 2 are used thrice each: 0 stays
        ("belady", 4),
    ],
)
def test_recency_against_frequency_in_one_slot(policy: Replacement, hits: int) -> None:
    # belady: 0 kept over 1 (hits at passes 2 and 3), then over the first 2 (5), then 2 for its last use (7)
    assert hit_rate(one_layer_trace(3, [0, 1, 0, 0, 2, 0, 2, 2]), 1, 1, policy) == hits / 7


def test_prompts_of_a_batch_go_through_a_pass_together() -> None:
    trace = one_layer_trace(4, [0, 0, 1], [1, 2, 0])  # passes {0, 1}, {0, 2}, {0, 1}
    stats = trace_cache_stats(trace, moe(4), 2, 1, "lru")
    assert stats == CacheStats((0.5,), (2 / 4,))  # of a pass's experts the lower number stays: 0 hits twice
    assert hit_rate(trace, 2, 2, "lru") == 2 / 4
    assert hit_rate(trace, 2, 3, "lru") == 3 / 4


def test_the_cache_outlives_batches_and_an_incomplete_batch_is_left_out() -> None:
    trace = one_layer_trace(4, [0, 1], [2, 3], [0, 1], [2, 3], [3, 3])
    assert hit_rate(trace, 2, 4, "lru") == 4 / 6  # pass 2 of the first batch is cold
    assert hit_rate(trace, 5, 4, "lru") == 1 / 2  # {0, 2, 3}, then {1, 3}
    assert hit_rate(trace, 4, 4, "lru") == 0  # {0, 2}, then {1, 3}


def test_a_prompt_that_ends_early_leaves_its_batch() -> None:
    stats = trace_cache_stats(one_layer_trace(4, [0, 1, 2], [0, 3]), moe(4), 2, 2, "lru")  # {0}, {1, 3}, {2}
    assert stats.touched == ((2 / 4 + 1 / 4) / 2,)


def test_the_order_of_tokens_in_the_trace_and_prefill_tokens_do_not_matter() -> None:
    model = moe(8, 2, 3)
    trace = random_trace(model, 5, 6, seed=1)
    keep = np.random.default_rng(2).permutation(np.flatnonzero(trace.step > 0))
    shuffled = RoutingTrace("tiny", 8, trace.experts[keep], trace.prompt[keep], trace.step[keep].astype(np.uint64))
    for policy in POLICIES:
        assert trace_cache_stats(trace, model, 2, 3, policy) == trace_cache_stats(shuffled, model, 2, 3, policy)


def test_dense_layers_count_nothing_and_moe_layers_keep_their_place() -> None:
    model = replace(MODEL, layers=(DENSE, *moe(4).layers, DENSE, *moe(4).layers))
    trace = RoutingTrace("tiny", 4, np.array([[[0], [1]], [[0], [2]]]), np.array([7, 7]), np.array([1, 2]))
    assert trace_cache_stats(trace, model, 1, 2, "lru") == CacheStats((0, 0.25, 0, 0.25), (0, 1, 0, 0))
    flat = uniform_cache_stats(model, 1, 0.5)
    assert flat.touched == pytest.approx((0, 0.25, 0, 0.25)) and flat.hit_rate == (0, 0.5, 0, 0.5)
    assert zipf_cache_stats(model, 1, 0.5, 1.0).hit_rate[::2] == (0, 0)


# --- replay, against independent implementations ---


@st.composite
def demands(draw: st.DrawFn, most_experts: int = 5, most_passes: int = 12) -> tuple[RoutingTrace, int]:
    """A top-1 trace and its batch size."""
    experts, batch, steps = (
        draw(st.integers(2, most_experts)),
        draw(st.integers(1, 3)),
        draw(st.integers(2, most_passes)),
    )
    choices = st.lists(st.integers(0, experts - 1), min_size=steps, max_size=steps)
    return one_layer_trace(experts, *draw(st.lists(choices, min_size=batch, max_size=batch))), batch


def pass_sets(trace: RoutingTrace) -> list[set[int]]:
    return [set(trace.experts[trace.step == k, 0, 0].tolist()) for k in range(1, trace.step.max() + 1)]


def replay_with_sets(passes: list[set[int]], slots: int, policy: str) -> int:
    """Contents as a set: of what is held or was just fetched, the best stay."""
    held: set[int] = set()
    worth: dict[int, int] = {}
    hits = 0
    for now, wanted in enumerate(passes):
        hits += len(held & wanted) if now else 0
        for expert in wanted:
            worth[expert] = now if policy == "lru" else worth.get(expert, 0) + 1
        held = set(sorted(held | wanted, key=lambda e: (-worth[e], e))[:slots])
    return hits


def most_hits(passes: list[set[int]], num_experts: int, slots: int) -> int:
    """Over every way of choosing what a cache holds, starting from any contents before the first counted pass."""
    every = [frozenset(c) for n in range(slots + 1) for c in combinations(range(num_experts), n)]
    best = dict.fromkeys(every, 0)
    for wanted in passes[1:]:
        following = dict.fromkeys(every, -1)
        for (before, hits), after in product(best.items(), every):
            if hits >= 0 and after <= before | wanted:
                following[after] = max(following[after], hits + len(before & wanted))
        best = following
    return max(best.values())


@settings(max_examples=60, deadline=None)
@given(demands(), st.integers(0, 5))
def test_lru_and_lfu_agree_with_sets(case: tuple[RoutingTrace, int], slots: int) -> None:
    (trace, batch), passes = case, pass_sets(case[0])
    slots = min(slots, trace.num_experts)
    demanded = sum(len(wanted) for wanted in passes[1:])
    for policy in ("lru", "lfu"):
        assert hit_rate(trace, batch, slots, policy) == replay_with_sets(passes, slots, policy) / demanded


@settings(max_examples=30, deadline=None)
@given(demands(most_experts=4, most_passes=7), st.integers(0, 3))
def test_belady_is_the_best_of_all_caches(case: tuple[RoutingTrace, int], slots: int) -> None:
    (trace, batch), passes = case, pass_sets(case[0])
    slots = min(slots, trace.num_experts)
    demanded = sum(len(wanted) for wanted in passes[1:])
    assert hit_rate(trace, batch, slots, "belady") == most_hits(passes, trace.num_experts, slots) / demanded


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 1.0, 2.0]))
def test_belady_bounds_the_others_and_slots_only_help(seed: int, batch: int, exponent: float) -> None:
    model = moe(6, 2, 2)
    trace = random_trace(model, 6, 10, seed, exponent)
    by_policy = {
        policy: np.array([trace_cache_stats(trace, model, batch, slots, policy).hit_rate for slots in range(7)])
        for policy in POLICIES
    }
    for policy, rates in by_policy.items():
        assert (rates <= by_policy["belady"]).all(), policy
        assert (np.diff(rates, axis=0) >= 0).all(), policy
        assert (rates[0] == 0).all(), policy
    assert (by_policy["belady"][-1] == 1).all()
    assert (by_policy["static"][-1] == 1).all()


def test_replayed_zipf_tokens_come_near_the_expected_statistics() -> None:
    model, batch = moe(16, 2, 2), 8
    trace = random_trace(model, 8 * batch, 60, exponent=1.0)
    expected, replayed = zipf_cache_stats(model, batch, 0.5, 1.0), trace_cache_stats(trace, model, batch, 8, "static")
    assert replayed.touched == pytest.approx(expected.touched, abs=0.02)
    assert replayed.hit_rate == pytest.approx(expected.hit_rate, abs=0.02)


# --- distributions ---


def exact_inclusion(num_experts: int, top_k: int, exponent: float) -> np.ndarray:
    """Sum over every order in which top_k experts can be drawn."""
    weights, chosen = np.arange(1, num_experts + 1.0) ** -exponent, np.zeros(num_experts)
    for order in permutations(range(num_experts), top_k):
        left = weights.sum() - np.concatenate([[0.0], np.cumsum(weights[list(order[:-1])])])
        chosen[list(order)] += np.prod(weights[list(order)] / left)
    return chosen


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 1), (8, 2), (8, 4), (16, 2), (4, 4)])
@pytest.mark.parametrize(("exponent", "tolerance"), [(0.0, 1e-12), (0.5, 0.03), (1.5, 0.03), (3.0, 0.08)])
def test_inclusion_probabilities(num_experts: int, top_k: int, exponent: float, tolerance: float) -> None:
    chosen, exact = inclusion_probabilities(num_experts, top_k, exponent), exact_inclusion(num_experts, top_k, exponent)
    assert chosen.sum() == pytest.approx(top_k, rel=1e-12)
    assert exact.sum() == pytest.approx(top_k, rel=1e-12)
    assert (np.diff(chosen) <= 1e-15).all()
    assert chosen == pytest.approx(exact, abs=1e-12 if top_k in (1, num_experts) else tolerance)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 500), st.floats(0, 1), st.floats(0, MAX_EXPONENT))
def test_skew_raises_the_hit_rate_and_lowers_what_is_touched(
    num_experts: int, top_k: int, tokens: int, share: float, exponent: float
) -> None:
    model = moe(num_experts, min(top_k, num_experts))
    flat, skewed = uniform_cache_stats(model, tokens, share), zipf_cache_stats(model, tokens, share, exponent)
    steeper = zipf_cache_stats(model, tokens, share, min(MAX_EXPONENT, exponent + 0.5))
    assert flat.hit_rate[0] - 1e-12 <= skewed.hit_rate[0] <= steeper.hit_rate[0] + 1e-12
    assert flat.touched[0] + 1e-12 >= skewed.touched[0] >= steeper.touched[0] - 1e-12
    assert 0 <= skewed.hit_rate[0] <= 1 and 0 < skewed.touched[0] <= 1


def test_zipf_above_uniform_and_continuous_at_exponent_0() -> None:
    flat = uniform_cache_stats(MODEL, 12, 0.3)
    assert zipf_cache_stats(MODEL, 12, 0.3, 0.0) == flat
    nearly = zipf_cache_stats(MODEL, 12, 0.3, 1e-9)
    assert nearly.touched == pytest.approx(flat.touched, rel=1e-7)
    assert nearly.hit_rate == pytest.approx(flat.hit_rate, rel=1e-7)
    assert zipf_cache_stats(MODEL, 2, 0.3, 1.1).hit_rate[0] > 1.5 * flat.hit_rate[0]
    assert zipf_cache_stats(MODEL, 12, 1.0, 1.1).hit_rate == (1.0,) * 3
    assert zipf_cache_stats(MODEL, 12, 0.0, 1.1).hit_rate == (0.0,) * 3


# --- in the schedule and the simulator ---


def shares(graph: TaskGraph) -> list[float]:
    return [task.work.share for task in graph.tasks]


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "qwen3-30b-a3b", "llama-3-8b", "switch-base-128"])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("resident", [0.0, 0.3, 0.5])
def test_uniform_statistics_are_what_build_graph_assumes(name: str, batch: int, resident: float) -> None:
    sizes = Sizes(load_model(name), PRECISION)
    policy = tiny_policy("expert_cache", "resident", 1, batch_size=batch, micro_batch_size=batch, ffn_batch_size=batch,
                         weights_on_gpu=resident)  # fmt: skip
    work = decode_slice(policy, 10.0)
    assumed = build_graph(sizes, work, policy)
    given_ = build_graph(sizes, work, policy, uniform_cache_stats(sizes.model, batch, resident))
    assert [(t.kind, t.after) for t in given_.tasks] == [(t.kind, t.after) for t in assumed.tasks]
    assert shares(given_) == pytest.approx(shares(assumed), rel=1e-12, abs=1e-15)


@pytest.fixture(scope="module")
def mixtral() -> Rates:
    profile, model = load_profile("t4"), load_model("mixtral-8x7b")
    return make_rates(profile, model, load_workload("mtbench"), choose_precision(model, profile))


@pytest.mark.parametrize("batch", [1, 16])
def test_a_better_hit_rate_never_lowers_simulated_throughput(mixtral: Rates, batch: int) -> None:
    simulator = Simulator(mixtral)
    policy = tiny_policy("expert_cache", "resident", 1, batch_size=batch, micro_batch_size=batch, ffn_batch_size=batch,
                         weights_on_gpu=0.25, prefill_chunk_tokens=1024)  # fmt: skip
    flat = uniform_cache_stats(mixtral.model, batch, 0.25)
    skewed = [zipf_cache_stats(mixtral.model, batch, 0.25, s) for s in (0.0, 0.5, 1.0, 2.0)]
    better = [CacheStats(flat.touched, (rate,) * 32) for rate in np.linspace(0.25, 1.0, 13)]
    for stats in (skewed, better):
        seconds = [sum(generation_seconds(simulator, policy, cache)) for cache in stats]
        assert seconds == sorted(seconds, reverse=True) and seconds[0] > 1.05 * seconds[-1]
    assert sum(generation_seconds(simulator, policy)) == pytest.approx(sum(generation_seconds(simulator, policy, flat)))


# --- files ---

GOOD = random_trace(MODEL, 3, 4)


def good_arrays() -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(GOOD, name)) for name in (*REQUIRED, "gate_weights")}


def with_value(name: str, index: object, value: int) -> dict[str, np.ndarray]:
    array = np.array(getattr(GOOD, name))
    array[index] = value
    return {name: array}


@pytest.mark.parametrize("gate_weights", [GOOD.gate_weights, None])
def test_round_trip(tmp_path: Path, gate_weights: np.ndarray | None) -> None:
    path, trace = tmp_path / "trace.npz", replace(GOOD, gate_weights=gate_weights)
    save_routing_trace(trace, path)
    read = load_routing_trace(path, MODEL)
    assert (read.model, read.num_experts) == ("tiny", 8)
    for name in ("experts", "prompt", "step", "gate_weights"):
        ours, theirs = getattr(trace, name), getattr(read, name)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs)
    assert read.experts.dtype == np.uint8 and read.prompt.dtype == trace.prompt.dtype


TOP3 = np.concatenate([GOOD.experts, (GOOD.experts.max(axis=-1, keepdims=True) + 1) % 8], axis=-1)
REFUSALS: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "missing array": ({"step": None}, "lacks step; a routing trace holds experts"),
    "unknown array": ({"gates": np.zeros(3)}, "holds unknown gates"),
    "model no string": ({"model": np.array(3)}, "model must be one string, not int64"),
    "two models": ({"model": np.array(["tiny", "tiny"])}, "model must be one string"),
    "num_experts no number": ({"num_experts": np.array(8.0)}, "num_experts must be one whole number"),
    "pickled objects": ({"model": np.array({"a": 1}, dtype=object)}, "cannot be read as .npz"),
    "experts two-dimensional": ({"experts": GOOD.experts[:, :, 0]}, r"must be integers \[tokens, layers, top_k\]"),
    "experts floats": ({"experts": GOOD.experts.astype(float)}, "experts must be integers"),
    "experts booleans": ({"experts": GOOD.experts > 3}, "experts must be integers"),
    "empty": ({"experts": GOOD.experts[:0], "prompt": GOOD.prompt[:0], "step": GOOD.step[:0]}, "holds no token"),
    "prompts too few": ({"prompt": GOOD.prompt[1:]}, "prompt must be 15 integers"),
    "steps too many": ({"step": np.append(GOOD.step, 1)}, "step must be 15 integers"),
    "steps floats": ({"step": GOOD.step / 2}, "step must be 15 integers"),
    "gate_weights integers": ({"gate_weights": GOOD.experts}, "gate_weights must be floats"),
    "gate_weights of another shape": ({"gate_weights": np.zeros((15, 3, 1))}, "gate_weights must be floats"),
    "gate_weights not finite": ({"gate_weights": np.full((15, 3, 2), math.nan)}, "not finite"),
    "another model": ({"model": np.array("mixtral-8x7b")}, "recorded of model 'mixtral-8x7b', not tiny"),
    "layers too few": ({"experts": GOOD.experts[:, :2], "gate_weights": None}, "covers 2 layers, tiny has 3 MoE"),
    "layers too many": (
        {"experts": GOOD.experts[:, [0, 1, 2, 2]], "gate_weights": None},
        "covers 4 layers, tiny has 3 .* record every MoE layer and no other",
    ),
    "num_experts": ({"num_experts": np.array(16)}, "num_experts is 16, tiny has 8"),
    "top_k too small": ({"experts": GOOD.experts[:, :, :1], "gate_weights": None}, "top_k is 1, tiny has 2"),
    "top_k too large": ({"experts": TOP3, "gate_weights": None}, "top_k is 3, tiny has 2"),
    "expert too large": (with_value("experts", (4, 1, 0), 8), "token 4, MoE layer 1: expert 8 is outside 0 .. 7"),
    "expert negative": (with_value("experts", (0, 2, 1), -1), "token 0, MoE layer 2: expert -1 is outside"),
    "expert twice": (with_value("experts", (5, 0), 3), "token 5, MoE layer 0: expert 3 chosen twice"),
    "negative step": (with_value("step", 6, -2), "token 6: negative step"),
    "step twice": (with_value("step", 2, 1), "prompt 0: decode step 1 where 2 is expected"),
    "step left out": (with_value("step", 14, 9), "prompt 2: decode step 9 where 4 is expected"),
    "no first step": (with_value("step", 11, 0), "prompt 2: decode step 2 where 1 is expected"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_traces_that_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "trace.npz"
    np.savez(path, **{name: array for name, array in (good_arrays() | changes).items() if array is not None})
    with pytest.raises(WorkloadError, match=message) as refused:
        load_routing_trace(path, MODEL)
    assert str(refused.value).startswith(str(path))


def test_models_without_one_kind_of_moe_layer_are_refused() -> None:
    dense = replace(MODEL, layers=(DENSE,) * 3)
    mixed = replace(MODEL, layers=(LAYER, LAYER, *moe(8, 1).layers))
    for model, count in ((dense, 0), (mixed, 2)):
        with pytest.raises(WorkloadError, match=f"tiny has {count} kinds of MoE layers"):
            check_trace(GOOD, model)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    save_routing_trace(GOOD, good)
    with bad.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(WorkloadError, match="holds a single array"):
        load_routing_trace(bad, MODEL)
    for raw in (b"", b"PK", b"not a trace", good.read_bytes()[:-100], good.read_bytes()[:200]):
        bad.write_bytes(raw)
        with pytest.raises(WorkloadError, match="cannot be read"):
            load_routing_trace(bad, MODEL)
    for missing in (tmp_path, tmp_path / "absent.npz"):
        with pytest.raises(WorkloadError, match="cannot be read"):
            load_routing_trace(missing, MODEL)
    with pytest.raises(WorkloadError, match="cannot be written"):
        save_routing_trace(GOOD, tmp_path / "absent" / "trace.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_bytes_raise_nothing_but_workload_errors(tmp_path: Path, compressed: bool) -> None:
    path, rng = tmp_path / "trace.npz", np.random.default_rng(0)
    (np.savez_compressed if compressed else np.savez)(path, **good_arrays())
    raw, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(raw)
        for place in rng.integers(len(raw), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_routing_trace(path, MODEL)
        except WorkloadError:
            refused += 1
    assert refused > 200


# --- arguments ---


@pytest.mark.parametrize(
    ("batch", "slots", "policy", "message"),
    [
        (0, 2, "lru", "3 prompts with decode steps, a batch 0"),
        (4, 2, "lru", "3 prompts with decode steps, a batch 4; record at least a whole batch"),
        (1, -1, "lru", "-1 slots per layer must lie between 0 and 8"),
        (1, 9, "lru", "9 slots per layer"),
        (1, 2, "fifo", "unknown cache policy 'fifo'; known: lru, lfu, static, belady"),
    ],
)
def test_replays_that_are_refused(batch: int, slots: int, policy: Replacement, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        trace_cache_stats(GOOD, MODEL, batch, slots, policy)


def test_a_replay_checks_its_trace_and_needs_two_passes() -> None:
    with pytest.raises(WorkloadError, match="recorded of model 'other'"):
        trace_cache_stats(replace(GOOD, model="other"), MODEL, 1, 2, "lru")
    with pytest.raises(WorkloadError, match="one decode pass"):
        trace_cache_stats(one_layer_trace(4, [1], [2]), moe(4), 2, 1, "lru")
    only_prefill = replace(one_layer_trace(4, [1], [2]), step=np.zeros(2, dtype=int))
    with pytest.raises(WorkloadError, match="0 prompts with decode steps"):
        trace_cache_stats(only_prefill, moe(4), 1, 1, "lru")


@pytest.mark.parametrize(
    "arguments",
    [(0, 0.5, 1.0), (1, 1.5, 1.0), (1, math.nan, 1.0), (1, 0.5, -1.0), (1, 0.5, math.nan), (1, 0.5, math.inf)],
)
def test_distributions_that_are_refused(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(WorkloadError, match="routing: "):
        zipf_cache_stats(MODEL, *arguments)


@pytest.fixture(scope="module")
def tiny_rates() -> Rates:
    return make_rates(load_profile("t4"), MODEL, WORKLOAD, PRECISION)


def test_routing_option(tmp_path: Path, tiny_rates: Rates) -> None:
    policy, path = NAMED["expert_cache"], tmp_path / "trace.npz"
    trace = random_trace(MODEL, 9, 5)
    save_routing_trace(trace, path)
    assert read_cache_stats(None, tiny_rates, NAMED["cgopipe"]) is None
    assert read_cache_stats("uniform", tiny_rates, policy) == uniform_cache_stats(MODEL, 4, 0.5)
    for option, whole in (
        ("zipf:1.1", zipf_cache_stats(MODEL, 4, 0.5, 1.1)),
        (str(path), trace_cache_stats(trace, MODEL, 4, 4, "lru")),
    ):  # half of every expert's rows is in place, whichever are chosen
        assert read_cache_stats(option, tiny_rates, policy) == CacheStats(whole.touched, (0.5,) * MODEL.num_layers)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", "unknown form ''; give uniform, zipf:EXPONENT"),
        ("zipf", "unknown form 'zipf'"),
        ("trace.csv", "unknown form 'trace.csv'"),
        ("zipf:", "has no number as its exponent"),
        ("zipf:steep", "has no number as its exponent"),
        ("zipf:-1", "exponent -1 must lie between 0 and 20"),
        ("zipf:nan", "exponent nan must lie"),
        ("zipf:inf", "exponent inf must lie"),
        ("absent.npz", "absent.npz: cannot be read"),
    ],
)
def test_routing_options_that_are_refused(option: str, message: str, tiny_rates: Rates) -> None:
    with pytest.raises(WorkloadError, match=message):
        read_cache_stats(option, tiny_rates, NAMED["expert_cache"])


@pytest.mark.parametrize("schedule", sorted(set(NAMED) - {"expert_cache"}))
def test_other_schedules_have_no_routing_option(schedule: str, tiny_rates: Rates) -> None:
    with pytest.raises(WorkloadError, match=f"schedule {schedule} fetches experts before routing"):
        read_cache_stats("uniform", tiny_rates, NAMED[schedule])

"""Outputs never depend on the expert cache: any policy, any number of slots, right, wrong and no predictions."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runtime_policies import KERNEL, RESIDENT, make_policy
from tiny_checkpoints import save_tiny

from hrm.errors import PolicyError, WorkloadError
from hrm.predict.cache_plan import Fetch
from hrm.predict.cache_replay import true_predictions
from hrm.predict.path_predictions import UNKNOWN, ExpectedDemand
from hrm.spec.policy import Policy
from runtime.batch import Batch
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.device import CpuDevice
from runtime.engine import Engine
from runtime.experts.cache import ExpertSlots
from runtime.experts.recorder import RoutingRecorder
from runtime.experts.replay import replay_of
from runtime.experts.units import Units
from runtime.kernels.cpu_experts import addresses
from runtime.kernels.expert_mlp import expert_mlp
from runtime.kernels.listed_experts import listed_experts
from runtime.memory.scratch import Scratch
from runtime.requests.request import Completion, Request, Sampling
from runtime.sequences import SequenceTable

CACHES = ("lru", "lfu", "static", "predictive")
Demand = Callable[[Batch, SequenceTable], NDArray[np.float64] | None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("qwen3_moe")
    save_tiny("qwen3_moe", directory)
    return Checkpoint.open(directory)


def policy_of(model: Checkpoint, cache: str, slots: int, **changes: object) -> Policy:
    share = slots / (model.config.num_experts * sum(model.config.moe_layers))
    return make_policy("expert_cache", 4, 1, weights_on_gpu=share, expert_cache=cache, **RESIDENT, **changes)


def generated(
    model: Checkpoint, policy: Policy, forecast: Demand | None = None, units: Units | None = None
) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Tokens of nine ragged prompts, one longer than a chunk, and all their logits."""
    random = np.random.default_rng(3)
    lengths = [*random.integers(1, 20, 8), 55]
    prompts = [tuple(int(t) for t in random.integers(3, 128, n)) for n in lengths]
    requests = [Request(str(i), p, Sampling(5, ignore_eos=True)) for i, p in enumerate(prompts)]
    with Engine(model, policy, device="cpu", keep_logits=True, forecast=forecast, units=units) as engine:
        done = sorted((d for d in engine.generate(requests)), key=lambda d: int(d.request.request_id))
    completions = [d for d in done if isinstance(d, Completion)]
    assert len(completions) == len(requests)
    return [c.tokens for c in completions], torch.cat([c.logits for c in completions if c.logits is not None])


@pytest.fixture(scope="module")
def expected(model: Checkpoint) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    return generated(model, make_policy("layer_streaming", 8, 1, **RESIDENT))


@pytest.mark.parametrize("slots", ["top_k", "top_k + 1", "a quarter", "all"])
@pytest.mark.parametrize("cache", CACHES)
def test_any_policy_and_size(
    model: Checkpoint, expected: tuple[list[tuple[int, ...]], torch.Tensor], cache: str, slots: str
) -> None:
    whole = model.config.num_experts * sum(model.config.moe_layers)
    count = {"top_k": model.config.top_k, "top_k + 1": model.config.top_k + 1, "a quarter": whole // 4, "all": whole}
    tokens, logits = generated(model, policy_of(model, cache, count[slots]))
    assert tokens == expected[0]
    torch.testing.assert_close(logits, expected[1], atol=1e-4, rtol=0)
    assert torch.equal(logits, generated(model, policy_of(model, "lru", whole))[1])  # to the last bit


@pytest.mark.parametrize("copied", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("slots", ["top_k", "a quarter", "all"])
@pytest.mark.parametrize("cache", CACHES)
def test_any_share_of_misses_on_the_cpu(
    model: Checkpoint, expected: tuple[list[tuple[int, ...]], torch.Tensor], cache: str, slots: str, copied: float
) -> None:
    whole = model.config.num_experts * sum(model.config.moe_layers)
    count = {"top_k": model.config.top_k, "a quarter": whole // 4, "all": whole}[slots]
    by = KERNEL if copied else {}
    tokens, logits = generated(model, policy_of(model, cache, count, experts_on_gpu=copied, **by))
    assert tokens == expected[0]
    torch.testing.assert_close(logits, expected[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("experts_on_gpu", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("kind", ["wrong", "nothing", "everything"])
def test_any_prediction(
    model: Checkpoint, expected: tuple[list[tuple[int, ...]], torch.Tensor], kind: str, experts_on_gpu: float
) -> None:
    shape = sum(model.config.moe_layers), model.config.num_experts
    random = np.random.default_rng(0)
    demand = {
        "wrong": lambda: ExpectedDemand(random.random(shape), random.random(shape)),
        "nothing": lambda: UNKNOWN,
        "everything": lambda: ExpectedDemand(np.ones(shape)),
    }
    tokens, logits = generated(
        model,
        policy_of(model, "predictive", shape[1], experts_on_gpu=experts_on_gpu, **KERNEL),
        lambda batch, table: demand[kind](),
    )
    assert tokens == expected[0]
    torch.testing.assert_close(logits, expected[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("grouped", [False, True])
def test_units_in_turns(model: Checkpoint, expected: tuple[list[tuple[int, ...]], torch.Tensor], grouped: bool) -> None:
    """Two batches of two, one a pass, as they come or split anew by some prediction, right or wrong."""
    layers, experts = sum(model.config.moe_layers), model.config.num_experts
    random, sizes = np.random.default_rng(0), []

    def paths(table: SequenceTable, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        sizes.append(len(slots))
        return random.random((len(slots), layers, experts)) < 0.3

    policy = policy_of(model, "predictive", experts, experts_on_gpu=0.5 if grouped else 1.0).resized(1, 2)
    units = Units(policy.batch_size, paths if grouped else None)
    tokens, logits = generated(model, policy, units=units)
    assert tokens == expected[0]
    torch.testing.assert_close(logits, expected[1], atol=1e-4, rtol=0)
    assert (max(sizes) == 4 and min(sizes) > 2) if grouped else not sizes


@pytest.mark.parametrize("cache", CACHES)
def test_a_pass_that_fails_leaves_no_expert_behind(
    model: Checkpoint, expected: tuple[list[tuple[int, ...]], torch.Tensor], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache has planned and nobody has copied is not in place for the next run."""
    requests = [Request(str(i), (5 + i, 9, 7), Sampling(5, ignore_eos=True)) for i in range(4)]
    policy, copies = policy_of(model, cache, 12, experts_on_gpu=0.75), list[Fetch]()
    real = ExpertSlots._copy

    def fails(slots: ExpertSlots, device: CpuDevice, fetches: Sequence[Fetch], by_kernel: bool, ahead: bool) -> None:
        copies.extend(fetches)
        if len(copies) >= 9:
            raise RuntimeError("the link is gone")
        real(slots, device, fetches, by_kernel, ahead)

    with Engine(model, policy, device="cpu") as engine:
        with monkeypatch.context() as patch:
            patch.setattr(ExpertSlots, "_copy", fails)
            with pytest.raises(RuntimeError, match="link"):
                list(engine.generate(requests))
        again = {r.request.request_id: r.tokens for r in engine.generate(requests) if isinstance(r, Completion)}
    with Engine(model, policy, device="cpu") as engine:
        fresh = {r.request.request_id: r.tokens for r in engine.generate(requests) if isinstance(r, Completion)}
    assert again == fresh and len(fresh) == 4


def test_right_predictions_are_of_the_tokens_that_come_next(model: Checkpoint) -> None:
    """The recording's own experts as predictions: what a decode pass is told is what its tokens then choose."""
    prompts, first = [tuple(range(3, 3 + n)) for n in (9, 30, 4)], RoutingRecorder()
    with Engine(model, policy_of(model, "lru", 8), device="cpu", recorder=first) as engine:
        list(engine.generate(prompts, Sampling(6, ignore_eos=True)))
    recorded = first.trace()
    assert recorded is not None
    replay = replay_of(recorded, true_predictions(recorded))
    told: list[ExpectedDemand] = []

    def forecast(batch: Batch, table: SequenceTable) -> ExpectedDemand:
        told.append(demand := replay(batch, table))
        return demand

    with Engine(model, policy_of(model, "predictive", 12), device="cpu", forecast=forecast) as engine:
        engine.runner.replay, second = replay, RoutingRecorder()
        engine.runner.recorder = second
        second.bind(model.spec)
        list(engine.generate(prompts, Sampling(6, ignore_eos=True)))
    followed = second.trace()
    assert followed is not None and len(told) == 5
    for step, demand in enumerate(told, 1):
        for at, said in ((step, demand.now), (step + 1, demand.following)):
            assert said is not None
            chosen = np.zeros(said.shape, np.bool_)
            for row in followed.experts[followed.step == at]:
                np.put_along_axis(chosen, row, True, axis=1)
            assert (chosen == (said > 0.5)).all()


def test_in_turns_the_pass_that_follows_is_the_other_batch(model: Checkpoint) -> None:
    """Whose tokens are known: with the recording as predictions, what follows is what the next pass chooses."""
    prompts, first = [tuple(range(3, 3 + n)) for n in (9, 30, 4, 12)], RoutingRecorder()
    with Engine(model, policy_of(model, "lru", 8), device="cpu", recorder=first) as engine:
        list(engine.generate(prompts, Sampling(6, ignore_eos=True)))
    recorded = first.trace()
    assert recorded is not None
    replay = replay_of(recorded, true_predictions(recorded))
    told: list[tuple[list[int], ExpectedDemand]] = []

    def forecast(batch: Batch, table: SequenceTable) -> ExpectedDemand:
        slots = [slot for rows in batch.rows for slot in rows.slots.tolist()]
        told.append((slots, demand := replay(batch, table)))
        return demand

    policy = policy_of(model, "predictive", 12).resized(1, 2)
    with Engine(model, policy, device="cpu", forecast=forecast, units=Units(2)) as engine:
        engine.runner.replay = replay
        list(engine.generate(prompts, Sampling(6, ignore_eos=True)))
    assert len(told) == 10
    for (slots, demand), (others, after) in pairwise(told):
        assert set(slots) != set(others)
        np.testing.assert_array_equal(demand.following, after.now)


def test_recorded_routing_is_followed(model: Checkpoint) -> None:
    prompts = [tuple(range(3, 3 + n)) for n in (9, 30, 4)]
    first, second = RoutingRecorder(), RoutingRecorder()
    with Engine(model, policy_of(model, "lru", 8), device="cpu", recorder=first) as engine:
        list(engine.generate(prompts, Sampling(6, ignore_eos=True)))
    recorded = first.trace()
    assert recorded is not None
    others = [tuple(t + 40 for t in prompt) for prompt in prompts]
    with Engine(model, policy_of(model, "predictive", 8), device="cpu", recorder=second) as engine:
        engine.runner.replay = replay = replay_of(recorded)
        replay.check(engine.config)
        done = list(engine.generate(others, Sampling(6, ignore_eos=True)))
    followed = second.trace()
    assert len(done) == 3 and followed is not None
    assert (followed.experts == recorded.experts).all() and (followed.step == recorded.step).all()
    with Engine(model, policy_of(model, "lru", 8), device="cpu") as engine:
        engine.runner.replay = replay
        with pytest.raises(WorkloadError, match="request 0, whose token 14 is next"):
            list(engine.generate(others[:1], Sampling(9, ignore_eos=True)))


def test_statistics_add_up(model: Checkpoint) -> None:
    policy = policy_of(model, "lru", model.config.num_experts)
    with Engine(model, policy, device="cpu") as engine:
        list(engine.generate([(5, 6, 7), (8, 9)], Sampling(6, ignore_eos=True)))
        assert engine.memory.slots is not None
        counts = engine.memory.slots.cache.stats
    assert (counts.demanded == counts.hits + counts.fetched).all() and counts.hits.sum() > 0
    assert engine.memory.gpu_parts["expert_weights"] == engine.memory.slots.nbytes


@pytest.mark.parametrize("copied", [0.0, 0.5])
def test_the_cpu_computes_its_share_of_decode_misses_and_none_of_the_prompts(model: Checkpoint, copied: float) -> None:
    policy = policy_of(model, "lru", model.config.num_experts, experts_on_gpu=copied)
    with Engine(model, policy, device="cpu") as engine:
        list(engine.generate([(5, 6, 7), (8, 9)], Sampling(1, ignore_eos=True)))
        assert engine.memory.slots is not None
        prompts = engine.memory.slots.cache.stats
        list(engine.generate([(5, 6, 7), (8, 9)], Sampling(6, ignore_eos=True)))
        counts = engine.memory.slots.cache.stats.since(prompts)
    assert prompts.on_cpu.sum() == 0 < prompts.fetched.sum()
    assert (counts.demanded == counts.hits + counts.fetched + counts.on_cpu).all() and counts.on_cpu.sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most_rows", [0, 2, 100])
def test_listed_experts_whatever_their_rows(dtype: torch.dtype, most_rows: int) -> None:
    """The kernel of few rows, PyTorch's matmuls, and both: each listed expert for the tokens that chose it."""
    generator, (tokens, top_k, experts, hidden, inner) = torch.Generator().manual_seed(0), (9, 2, 6, 32, 16)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    gates = torch.rand(tokens, top_k, generator=generator)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).numpy()
    chosen[:5, 0], chosen[:5, 1] = 3, 1
    weights = [
        (torch.randn(2 * inner, hidden, generator=generator) / 6, torch.randn(hidden, inner, generator=generator) / 4)
        for _ in range(experts)
    ]
    weights = [(a.to(dtype), b.to(dtype)) for a, b in weights]
    where = np.array([addresses(*pair) for pair in weights], np.int64)
    for listed in ((3, 0), (1, 2, 3, 4, 5), (), (0,)):
        found = torch.empty(tokens, hidden, dtype=torch.float32)
        listed_experts(x, gates, chosen, listed, where, inner, found, 1, Scratch(), most_rows)
        wanted = torch.zeros(tokens, hidden)
        for t in range(tokens):
            for c in range(top_k):
                if (expert := int(chosen[t, c])) in listed:
                    wanted[t] += gates[t, c] * expert_mlp(x[t : t + 1], *weights[expert])[0].float()
        torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=0)


def test_a_cache_smaller_than_top_k_is_refused(model: Checkpoint) -> None:
    with pytest.raises(PolicyError, match="slots"):
        Engine(model, policy_of(model, "predictive", model.config.top_k - 1), device="cpu")

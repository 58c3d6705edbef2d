"""A decode pass's steps as calls that are made again and again: the same answers, however few calls are new."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_calls import Recorded
from runtime_policies import RESIDENT, STREAMED, make_policy
from tiny_checkpoints import save_tiny

from hrm.spec.policy import Policy
from runtime import decode_steps
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.decode_steps import MOST_SHAPES, make_steps
from runtime.engine import Engine
from runtime.graphs import CallGraphs
from runtime.requests.request import Completion, Request, Sampling

CACHE = make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lru", **RESIDENT)
LEAVING = make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lru", **RESIDENT, experts_on_gpu=0.5)


@pytest.fixture(scope="module", params=("mixtral", "qwen2_moe", "qwen3_moe"))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, directory)
    return Checkpoint.open(directory)


def answers(
    model: Checkpoint, policy: Policy, made: list[Recorded] | None, batches: int = 1
) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """Tokens and logits; prompts of different lengths, which end together. made: takes the recorded calls."""
    random, found = np.random.default_rng(5), {}
    with Engine(model, policy, device="cpu", keep_logits=True) as engine:
        if made is not None:
            engine.runner.steps = make_steps(engine.memory, lambda: made.append(Recorded()) or made[-1])
        for batch in range(batches):
            prompts = [tuple(random.integers(3, 128, length).tolist()) for length in (3, 9, 14, 40 + 30 * batch)]
            asked = [Request(f"{batch}.{i}", p, Sampling(30, ignore_eos=True)) for i, p in enumerate(prompts)]
            for done in engine.generate(asked):
                assert isinstance(done, Completion)
                found[done.request.request_id] = done.tokens, done.logits
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("policy", (CACHE, LEAVING), ids=("cache", "leaving"))
def test_the_same_answers(model: Checkpoint, policy: Policy) -> None:
    made: list[Recorded] = []
    found, expected = answers(model, policy, made, 3), answers(model, policy, None, 3)
    assert len(made) == 1 and made[0].again > 2 * len(made[0].calls)
    for (tokens, logits), (own_tokens, own_logits) in zip(found, expected, strict=True):
        assert tokens == own_tokens
        torch.testing.assert_close(logits, own_logits, rtol=1e-4, atol=1e-5)


def test_contexts_of_few_shapes_are_kept(model: Checkpoint) -> None:
    made: list[Recorded] = []
    answers(model, CACHE, made, 4)
    shapes = {key[2] for key in made[0].calls if isinstance(key, tuple) and key[0] == "attend"}
    assert len(shapes) == MOST_SHAPES


def test_padding_grows_with_the_context() -> None:
    blocks = list(range(1, 400))
    padded = decode_steps._padded(blocks)
    assert all(b <= p < b + max(decode_steps.WIDTH, b / 4 + 1) for b, p in zip(blocks, padded, strict=True))
    assert padded == sorted(padded) and decode_steps._padded(padded) == padded


def test_no_steps_for_other_passes(model: Checkpoint) -> None:
    for policy in (make_policy("flexgen", 2, 2, **RESIDENT), make_policy("flexgen", 4, 1, **STREAMED)):
        made: list[Recorded] = []
        answers(model, policy, made)
        assert not made


def test_sizes_that_come_once_are_left_to_others(model: Checkpoint) -> None:
    """Passes of 4, 4, 3, 2 and 1 sequences: nothing is made for a number that no second pass has."""
    made: list[Recorded] = []
    with Engine(model, CACHE, device="cpu") as engine:
        engine.runner.steps = make_steps(engine.memory, lambda: made.append(Recorded()) or made[-1])
        asked = [Request(str(n), (5, 6, 7), Sampling(n, ignore_eos=True)) for n in (3, 4, 5, 6)]
        assert len(list(engine.generate(asked))) == 4
    assert len(made) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_of_calls() -> None:
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        graphs, x, y, runs = CallGraphs(), torch.ones(4, device="cuda"), torch.zeros(4, device="cuda"), []

        def call() -> None:
            runs.append(1)
            y.add_(x * 2)

        for _ in range(5):
            graphs.run("double", call)
        x.fill_(10.0)
        graphs.run("double", call)
        assert len(runs) == 2 and y.tolist() == [30.0] * 4
        graphs.forget(lambda key: key == "double")
        for _ in range(3):
            graphs.run("double", call)
        assert len(runs) == 4 and y.tolist() == [90.0] * 4

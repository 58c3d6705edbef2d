"""Tokens chosen from logits: the likeliest, or drawn from the tempered, cut distribution by seed and step alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.kernels.sampling import Draw, choose

VOCAB = 23
LARGEST_SEED = 2**63 - 1


def logits_of(rows: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """[rows, VOCAB]."""
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def draws(count: int, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, first_step: int = 0) -> Draw:
    """`count` rows of one request: its steps one after the other."""
    real = torch.ones(count, dtype=torch.float64)
    steps = torch.arange(first_step, first_step + count)
    return Draw(real * temperature, real * top_p, torch.full((count,), seed), steps)


def joined(parts: list[Draw]) -> Draw:
    names = ("temperature", "top_p", "seed", "step")
    return Draw(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def chosen_of(logits: Tensor, draw: Draw) -> list[int]:
    """One row of logits [V] under every draw."""
    tokens: list[int] = choose(logits.expand(len(draw.step), -1).contiguous(), draw).tolist()
    return tokens


def smallest_set(probabilities: np.ndarray, top_p: float) -> set[int]:
    order = np.argsort(-probabilities, kind="stable")
    held = np.cumsum(probabilities[order])
    return {int(t) for t in order[: int(np.searchsorted(held, top_p, side="left")) + 1]}


def test_greedy_is_the_argmax() -> None:
    logits = logits_of(40)
    wanted = logits.argmax(dim=-1)
    assert torch.equal(choose(logits, None), wanted)
    assert torch.equal(choose(logits, draws(40, temperature=0.0)), wanted)


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-4])
def test_low_temperature_is_greedy(temperature: float) -> None:
    logits = logits_of(200, seed=1)
    assert torch.equal(choose(logits, draws(200, temperature)), logits.argmax(dim=-1))


@pytest.mark.parametrize("top_p", [1e-300, 1e-60, 1e-9])
def test_a_tiny_top_p_is_greedy(top_p: float) -> None:
    logits = logits_of(50, seed=2)
    assert torch.equal(choose(logits, draws(50, top_p=top_p)), logits.argmax(dim=-1))


def test_huge_temperature_is_uniform() -> None:
    found = chosen_of(logits_of(1)[0], draws(2000, temperature=1e300))
    assert set(found) == set(range(VOCAB))


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = logits_of(6, seed=3)
    parts = [draws(1, temperature=t, seed=i) for i, t in enumerate((0.0, 1.0, 0.0, 0.7, 2.0, 0.0))]
    together = choose(logits, joined(parts)).tolist()
    assert together == [int(choose(logits[i : i + 1], part)) for i, part in enumerate(parts)]
    assert [together[i] for i in (0, 2, 5)] == logits.argmax(dim=-1)[[0, 2, 5]].tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 0.95), st.floats(0.3, 3.0))
def test_top_p_keeps_exactly_the_smallest_set(seed: int, top_p: float, temperature: float) -> None:
    """Every token of the set comes, no other: 24 bits times rows spread evenly over [0, 1) find all of them."""
    logits = logits_of(1, seed % 1000)[0]
    probabilities = (logits.double() / temperature).softmax(dim=-1).numpy()
    wanted = smallest_set(probabilities, top_p)
    near = np.cumsum(np.sort(probabilities)[::-1])
    if np.abs(near - top_p).min() < 1e-5:  # fp32 may decide either way
        return
    found = set(chosen_of(logits, draws(4000, temperature, top_p, seed)))
    assert found <= wanted
    rare = probabilities[list(wanted)].min() / probabilities[list(wanted)].sum()
    if rare > 0.005:  # missed with probability below 2e-9
        assert found == wanted


def test_top_p_on_the_border_stops_there() -> None:
    """Probabilities that fp32 holds exactly: 1/2 and 1/4 are 3/4, and no more is needed."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert set(chosen_of(logits, draws(500, top_p=0.5))) == {0}
    assert set(chosen_of(logits, draws(500, top_p=0.74))) == {0, 1}
    assert set(chosen_of(logits, draws(500, top_p=1.0))) == {0, 1, 2, 3}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, LARGEST_SEED), min_size=1, max_size=12, unique=True), st.data())
def test_a_draw_depends_on_seed_and_step_alone(seeds: list[int], data: st.DataObject) -> None:
    """The same token whatever shares the batch, whatever the order."""
    logits = logits_of(len(seeds), seed=len(seeds))
    steps = data.draw(st.lists(st.integers(0, 10_000), min_size=len(seeds), max_size=len(seeds)))
    parts = [draws(1, 0.9, 0.95, seed, step) for seed, step in zip(seeds, steps, strict=True)]
    alone = [int(choose(logits[i : i + 1], part)) for i, part in enumerate(parts)]
    order = data.draw(st.permutations(range(len(seeds))))
    together = choose(logits[order], joined([parts[i] for i in order])).tolist()
    assert together == [alone[i] for i in order]
    half = joined(parts).rows(0, (len(parts) + 1) // 2)
    assert choose(logits[: len(half.step)], half).tolist() == alone[: len(half.step)]


def test_equal_logits_are_told_apart_by_their_order() -> None:
    """Half precision makes ties; which one a draw means must not depend on how the batch is sorted."""
    logits = torch.zeros(7, VOCAB)
    draw = draws(7, seed=5)
    alone = [int(choose(logits[i : i + 1], draw.rows(i, i + 1))) for i in range(7)]
    assert choose(logits, draw).tolist() == alone


@pytest.mark.parametrize("by", ["step", "seed"])
def test_frequencies_follow_the_distribution(by: str) -> None:
    """Chi-square of 20,000 draws, over the steps of one request and over the first steps of many."""
    count, temperature, top_p = 20_000, 0.8, 0.97
    logits = logits_of(1, seed=9, scale=1.5)[0]
    probabilities = (logits.double() / temperature).softmax(dim=-1).numpy()
    kept = sorted(smallest_set(probabilities, top_p))
    expected = probabilities[kept] / probabilities[kept].sum() * count
    draw = draws(count, temperature, top_p, seed=1234)
    if by == "seed":
        draw = Draw(draw.temperature, draw.top_p, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    found = np.bincount(chosen_of(logits, draw), minlength=VOCAB)
    assert found.sum() == found[kept].sum() == count
    statistic, freedom = float(((found[kept] - expected) ** 2 / expected).sum()), len(kept) - 1
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(normal) < 3.3  # Wilson and Hilferty: one in a thousand


def test_steps_and_seeds_are_not_correlated() -> None:
    """Neighbouring seeds and steps draw different sequences."""
    flat = torch.zeros(1, 2).expand(4096, -1).contiguous()
    sequences = torch.stack([choose(flat, draws(4096, seed=seed)).double() for seed in range(8)]) - 0.5
    correlation = torch.corrcoef(sequences) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.08
    lagged = (sequences[:, 1:] * sequences[:, :-1]).mean(dim=1) * 4
    assert float(lagged.abs().max()) < 0.08


@pytest.mark.parametrize("seed", [0, 1, LARGEST_SEED, -1, -(2**63)])
def test_any_seed_draws_tokens_of_the_vocabulary(seed: int) -> None:
    found = chosen_of(logits_of(1)[0], draws(300, seed=seed, first_step=2**40))
    assert set(found) <= set(range(VOCAB)) and len(set(found)) > 3

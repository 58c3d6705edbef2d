"""Tiles of experts in slots, and on a GPU the kernels that compute them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.kernels.expert_mlp import expert_mlp
from runtime.kernels.few_rows import Slots, add_few_rows, bring_few_rows, compute_few_rows, few_rows_failure
from runtime.kernels.slot_tiles import tiles_of
from runtime.memory.staging import Staging


@st.composite
def placed_choices(draw: st.DrawFn) -> tuple[np.ndarray, list[list[tuple[int, int]]], int]:
    """Experts [T, k], some of them in slots at one of several steps, and how many experts there are."""
    experts, steps = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    tokens, top_k = draw(st.integers(0, 30)), draw(st.integers(1, experts))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    chosen = np.array([random.permutation(experts)[:top_k] for _ in range(tokens)], np.int64).reshape(tokens, top_k)
    slots, found = random.permutation(50), [[] for _ in range(steps)]
    for expert in np.unique(chosen).tolist():
        step = int(random.integers(0, steps + 1))
        if step < steps:
            found[step].append((expert, int(slots[expert])))
    return chosen, found, experts


@given(placed_choices(), st.sampled_from([(1,), (2, 4), (16, 64)]))
def test_every_placed_pair_lies_in_one_tile(
    case: tuple[np.ndarray, list[list[tuple[int, int]]], int], sizes: tuple[int, ...]
) -> None:
    chosen, steps, num_experts = case
    tiles = tiles_of(chosen, steps, num_experts, sizes)
    seen: list[int] = []
    for placed, (first, last) in zip(steps, pairwise(tiles.borders), strict=True):
        for slot, start, stop in tiles.tiles[first:last].tolist():
            assert 0 < stop - start <= tiles.most and tiles.most in sizes
            pairs = tiles.pairs[start:stop].tolist()
            (expert,) = {int(chosen.reshape(-1)[pair]) for pair in pairs}
            assert (expert, slot) in placed
            seen += pairs
    here = {expert for placed in steps for expert, _ in placed}
    assert sorted(seen) == [pair for pair, expert in enumerate(chosen.reshape(-1).tolist()) if expert in here]
    assert tiles.borders[-1] == len(tiles.tiles)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "top_k", "hidden", "inner", "experts"), [(16, 8, 256, 96, 32), (70, 2, 72, 40, 8)])
def test_kernels_compute_what_the_experts_are(
    dtype: torch.dtype, tokens: int, top_k: int, hidden: int, inner: int, experts: int
) -> None:
    assert not few_rows_failure()
    random, device = np.random.default_rng(0), torch.device("cuda")
    torch.manual_seed(0)
    memory = (torch.randn(experts + 5, 3 * hidden * inner, device=device) / 8).to(dtype)
    x, gates = torch.randn(tokens, hidden, device=device).to(dtype), torch.rand(tokens, top_k, device=device)
    chosen = np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int64)
    slots, touched = random.permutation(experts + 5), np.unique(chosen).tolist()
    placed = [(expert, int(slots[expert])) for expert in touched[:-1]]  # the last is somebody else's
    steps, where = [placed[::2], placed[1::2]], Slots(memory, hidden, inner)
    rows = bring_few_rows({0: chosen}, steps, experts, where, Staging(device))[0]
    for step in range(2):
        compute_few_rows(x, rows, step, where)
    found = add_few_rows(x, rows, gates)
    wanted = torch.zeros(tokens, hidden, device=device)
    for expert, slot in placed:
        gate_up = memory[slot, : 2 * inner * hidden].view(2 * inner, hidden).float()
        given = expert_mlp(x.float(), gate_up, memory[slot, 2 * inner * hidden :].view(hidden, inner).float())
        wanted += given * (gates * torch.from_numpy(chosen == expert).to(device)).sum(1, keepdim=True)
    torch.testing.assert_close(found.float(), x.float() + wanted, atol=0.06, rtol=0.02)

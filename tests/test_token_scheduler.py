"""Regrouped batches keep their sizes and never touch more experts than those given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm.errors import ScheduleError
from runtime.experts.token_scheduler import distinct_experts, regroup


def random_paths(seed: int, sequences: int, layers: int, experts: int) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    return rng.random((sequences, layers, experts)) < rng.random()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 9))
def test_sizes_are_kept_and_batches_never_touch_more(seed: int, n1: int, n2: int, layers: int, experts: int) -> None:
    paths = random_paths(seed, n1 + n2, layers, experts)
    first, second = regroup(paths, (n1, n2))
    assert (len(first), len(second)) == (n1, n2)
    assert sorted([*first, *second]) == list(range(n1 + n2))
    given_split = distinct_experts(paths, (np.arange(n1), np.arange(n1, n1 + n2)))
    assert distinct_experts(paths, (first, second)).sum() <= given_split.sum()
    for once, again in zip((first, second), regroup(paths, (n1, n2)), strict=True):
        assert (once == again).all()


@pytest.mark.parametrize("sizes", [(8, 8), (3, 13)])
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_split_is_found(seed: int, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    paths = np.zeros((16, 4, 32), dtype=np.bool_)
    member = rng.permutation(16) < sizes[0]
    for row in range(16):  # either group has its half of every layer's experts
        half = rng.permutation(16)[:10] + (0 if member[row] else 16)
        paths[row, :, half] = True
    groups = regroup(paths, sizes)
    planted = {tuple(np.flatnonzero(member)), tuple(np.flatnonzero(~member))}
    assert {tuple(rows) for rows in groups} == planted


def test_batches_that_are_right_already_stay() -> None:
    paths = np.zeros((4, 1, 4), dtype=np.bool_)
    paths[:2, 0, :2] = paths[2:, 0, 2:] = True
    first, second = regroup(paths, (2, 2))
    assert (first.tolist(), second.tolist()) == ([0, 1], [2, 3])
    first, second = regroup(paths[[0, 2, 1, 3]], (2, 2))
    assert (first.tolist(), second.tolist()) == ([0, 2], [1, 3])


def test_distinct_experts_are_counted_by_layer() -> None:
    paths = np.array([[[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [0, 0, 1]], [[0, 1, 1], [0, 0, 0]]], dtype=np.bool_)
    assert distinct_experts(paths, (np.array([0, 1]), np.array([2]))).tolist() == [[1, 3], [2, 0]]


@pytest.mark.parametrize(
    ("shape", "dtype", "sizes", "message"),
    [
        ((4, 2, 3), np.float32, (2, 2), "must be bool"),
        ((4, 6), np.bool_, (2, 2), "must be bool"),
        ((4, 2, 3), np.bool_, (2, 3), "batches of 2 and 3 for 4 sequences"),
        ((4, 2, 3), np.bool_, (0, 4), "batches of 0 and 4"),
    ],
)
def test_what_is_no_pair_of_batches_is_refused(
    shape: tuple[int, ...], dtype: type, sizes: tuple[int, int], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        regroup(np.zeros(shape, dtype=dtype), sizes)

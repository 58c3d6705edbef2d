"""Tiles of the rows of experts in slots: index arithmetic on the host.

T tokens, k top_k, S steps, R rows: (token, choice) pairs whose expert is in a slot, expert after expert, step by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from runtime.kernels.slot_rows import Placed

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """pairs [R]: number of the pair, t k + c; tiles [tiles, 3]: slot, first row and row past the last, at most `most`
    rows; borders [S + 1]: where each step's tiles begin, and the end.
    """

    pairs: Ints
    tiles: Ints
    borders: list[int]
    most: int


def tiles_of(chosen: Ints, steps: Sequence[Placed], num_experts: int, sizes: tuple[int, ...]) -> Tiles:
    """chosen [T, k]: experts, of which each is placed in a slot at one of the steps, or at none.

    As few tiles as there are slots, where one of `sizes` (ascending) is as large as the rows of every slot.
    """
    placed = np.fromiter(chain.from_iterable(chain.from_iterable(steps)), np.int64).reshape(-1, 2)
    experts, slots = placed[:, 0], placed[:, 1]
    rank = np.full(num_experts, len(placed), np.int64)
    rank[experts] = np.arange(len(placed))
    flat = chosen.reshape(-1)
    counts = np.bincount(flat, minlength=num_experts)[experts]
    stops = counts.cumsum()
    pairs = rank[flat].argsort(kind="stable")[: stops[-1] if len(stops) else 0]
    borders = [0, *accumulate(len(step) for step in steps)]
    longest = int(counts.max(initial=1))
    most = next((size for size in sizes if size >= longest), sizes[-1])
    tiles = np.stack((slots, stops - counts, stops), axis=1)
    if longest > most:
        tiles, borders = _split(tiles, borders, most)
    return Tiles(pairs, tiles, borders, most)


def _split(tiles: Ints, borders: list[int], most: int) -> tuple[Ints, list[int]]:
    """Tiles of more than `most` rows in several."""
    pieces = -(-(tiles[:, 2] - tiles[:, 1]) // most)
    ends = np.concatenate(([0], pieces.cumsum()))
    slots, starts, stops = np.repeat(tiles, pieces, axis=0).T
    starts = starts + most * (np.arange(ends[-1]) - np.repeat(ends[:-1], pieces))
    return np.stack((slots, starts, np.minimum(starts + most, stops)), axis=1), ends[borders].tolist()

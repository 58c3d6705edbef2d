"""Tiles of the rows of experts in slots: index arithmetic on the host.

R rows: (token, choice) pairs whose expert is in a slot, by step, then by slot. S steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.kernels.slot_rows import SlotRows

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """tiles [tiles, 3]: slot, first row and row past the last, at most `most` rows; borders [S + 1]: where each step's
    tiles begin, and the end.
    """

    tiles: Ints
    borders: list[int]
    most: int


def tiles_of(rows: SlotRows, sizes: tuple[int, ...]) -> Tiles:
    """As few tiles as there are slots, where one of `sizes` (ascending) is as large as the rows of every slot."""
    count = len(rows.slots)
    begins = np.ones(count, bool)
    begins[1:] = rows.slots[1:] != rows.slots[:-1]
    begins[rows.borders[:-1][rows.borders[:-1] < count]] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=count)
    longest = int(lengths.max(initial=1))
    most = next((size for size in sizes if size >= longest), sizes[-1])
    if longest > most:
        pieces = -(-lengths // most)
        numbers = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        ends = np.repeat(starts + lengths, pieces)
        starts = np.repeat(starts, pieces) + most * numbers
        stops = np.minimum(starts + most, ends)
    else:
        stops = starts + lengths
    tiles = np.stack((rows.slots[starts], starts, stops), axis=1)
    return Tiles(tiles, np.searchsorted(starts, rows.borders).tolist(), most)

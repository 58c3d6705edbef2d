"""Index arrays of micro-batches, as numbers: blocks of sequences, homes of tokens, groups of prompts."""

import numpy as np
from numpy.typing import NDArray

from runtime.batch import Piece
from runtime.memory.kv_cache import BLOCK
from runtime.sequences import SequenceTable

PADDING = 1.25  # prompts attend together while the longest is at most so much longer than the shortest
Indices = NDArray[np.int64]


def padded_table(table: SequenceTable, slots: Indices) -> Indices:
    """Blocks of each sequence, [slots, most]; padding repeats its first.

    Behind its own blocks a slot's row still has those of a sequence that has left, which may lie in another pool.
    """
    counts = -(-table.cached[slots] // BLOCK)
    most = int(counts.max(initial=0))
    blocks = table.table[slots, :most].astype(np.int64)
    return np.where(np.arange(most) < counts[:, None], blocks, blocks[:, :1])


def last_token(table: SequenceTable, slots: Indices) -> Indices:
    """Block and offset of each sequence's latest token, [2, slots]."""
    at = table.cached[slots] - 1
    return np.stack([table.table[slots, at // BLOCK].astype(np.int64), at % BLOCK])


def staged_blocks(counts: Indices, most: int) -> Indices:
    """Blocks of sequences that lie one behind the other; padding repeats a sequence's first."""
    first = np.cumsum(counts) - counts
    columns = np.arange(most)
    return first[:, None] + np.where(columns < counts[:, None], columns, 0)


def piece_homes(table: SequenceTable, piece: Piece) -> Indices:
    """Row of the chunk, block and offset of every token of a piece, [3, tokens]."""
    at = np.arange(piece.start, piece.stop)
    blocks = table.table[piece.slot, at // BLOCK].astype(np.int64)
    return np.stack([piece.row + at - piece.start, blocks, at % BLOCK])


def similar_groups(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces in order of length, cut where the longest would be too long for the shortest."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and piece.stop <= PADDING * groups[-1][0].stop + 8:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def group_arrays(pieces: list[Piece]) -> tuple[Indices, Indices, Indices]:
    """The three arrays of a PromptGroup."""
    starts = np.array([p.row for p in pieces])
    lengths = np.array([p.stop for p in pieces])
    offsets = np.arange(int(lengths.max()))
    inside = offsets < lengths[:, None]
    rows = starts[:, None] + np.where(inside, offsets, 0)
    return rows, np.flatnonzero(inside), rows[inside]

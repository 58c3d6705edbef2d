"""Experts in slots that have few rows each, on the GPU: one launch per matmul and step, however slots are scattered.

PyTorch's grouped matmul goes through all slots between the first and the last, used or not, at most 1,024 at a time.
T tokens, k top_k, H hidden_size, I intermediate_size, R rows: (token, choice) pairs whose expert is in a slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.kernels.slot_rows import Placed
from runtime.kernels.slot_tiles import tiles_of
from runtime.memory.staging import Staging, Upload, view_of

Ints = NDArray[np.int64]
ROWS = (16, 64)  # of a tile: what matrix units take at least, and where some slot has more
COLUMNS, DEPTH, ADD_COLUMNS = 32, 64, 512  # of a program's weights; elements of a step through them; of a sum
MOST_MEAN_ROWS = 32  # per expert: with more, weights are not all the work, and PyTorch's matmul uses the units better


@dataclass(frozen=True)
class Slots:
    """memory [slots, elements of an expert]: gate and up [2 I, H], then down [H, I]."""

    memory: Tensor
    hidden: int
    intermediate: int


@dataclass(frozen=True)
class FewRows:
    """On the device: pairs [R], tiles [tiles, 3], both int32; h [R, I]; each [T k, H] fp32, zero for pairs in no slot.
    borders: where each step's tiles begin, and the end; rows_per_tile: at most.
    """

    pairs: Tensor
    tiles: Tensor
    h: Tensor
    each: Tensor
    borders: list[int]
    rows_per_tile: int
    top_k: int


def takes_few_rows(device: torch.device, dtype: torch.dtype, pairs: int, touched: int) -> bool:
    """Whether the kernels are there, and faster for so many pairs of so many experts."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and pairs <= MOST_MEAN_ROWS * touched
        and _kernels()[0] is not None
    )


def bring_few_rows(
    chosen: Mapping[int, Ints], steps: Sequence[Placed], num_experts: int, slots: Slots, staging: Staging
) -> dict[int, FewRows]:
    """Of the experts [T, k] that each micro-batch has chosen, placed in slots step by step; in one piece past the copy
    engine's queue.

    staging: not to be used again before the device is through.
    """
    upload, added, device = Upload(np.int32), [], slots.memory.device
    for j, experts in chosen.items():
        tiles = tiles_of(experts, steps, num_experts, ROWS)
        added.append((j, experts.shape, tiles, upload.add(tiles.pairs), upload.add(tiles.tiles)))
    sent, found = upload.send(staging, device, lasting=True), {}
    for j, (tokens, top_k), tiles, pairs, at in added:
        h = torch.empty((len(tiles.pairs), slots.intermediate), dtype=slots.memory.dtype, device=device)
        make = torch.empty if len(tiles.pairs) == tokens * top_k else torch.zeros
        each = make((tokens * top_k, slots.hidden), dtype=torch.float32, device=device)
        found[j] = FewRows(view_of(sent, pairs), view_of(sent, at), h, each, tiles.borders, tiles.most, top_k)
    return found


def compute_few_rows(x: Tensor, rows: FewRows, step: int, slots: Slots) -> None:
    """A step's outputs to their pairs' rows of `each`; x [T, H]."""
    first, last = rows.borders[step : step + 2]
    if first == last:
        return
    kernels, memory, H, FF = _kernels()[0], slots.memory, slots.hidden, slots.intermediate
    assert kernels is not None
    where = rows.pairs, rows.tiles[first:last], memory, memory.stride(0)
    shape = {"H": H, "FF": FF, "BM": rows.rows_per_tile, "BN": COLUMNS, "BK": DEPTH, "num_stages": 3}
    kernels.gate_up_kernel[-(-FF // COLUMNS), last - first](x, *where, rows.h, top_k=rows.top_k, **shape)
    kernels.down_kernel[-(-H // COLUMNS), last - first](rows.h, *where, rows.each, **shape)


def add_few_rows(hidden: Tensor, rows: FewRows, gates: Tensor) -> Tensor:
    """hidden [T, H] with what the tokens' experts give, weighted by gates [T, k]; summed in fp32."""
    kernels, out, (tokens, H) = _kernels()[0], torch.empty_like(hidden), hidden.shape
    assert kernels is not None
    grid = -(-H // ADD_COLUMNS), tokens
    kernels.add_kernel[grid](hidden, rows.each, gates, out, top_k=rows.top_k, H=H, BN=ADD_COLUMNS)
    return out


def few_rows_failure() -> str:
    """Why there are no such kernels; empty where there are."""
    return _kernels()[1]


@cache
def _kernels() -> tuple[ModuleType | None, str]:
    """The kernels, tried on one number: Triton comes with PyTorch, but builds with a C compiler that may be missing."""
    try:
        from runtime.kernels import slot_kernels

        one = torch.ones((1, 1), device="cuda")
        slot_kernels.add_kernel[1, 1](one, one, one, torch.empty_like(one), top_k=1, H=1, BN=16)
    except Exception as error:  # whatever a compiler says
        return None, f"{type(error).__name__}: {error}"
    return slot_kernels, ""

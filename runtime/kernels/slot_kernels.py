"""Triton kernels for experts in slots that have few rows each: weights are read where they lie, slot by slot.

T tokens, k top_k, H hidden_size, FF intermediate_size, R rows: (token, choice) pairs, by step, then by slot. A tile is
up to BM rows of one slot: int32 (slot, first row, row past the last).
"""

import triton
import triton.language as tl

_ANYWHERE = {"do_not_specialize_on_alignment": ["pairs", "tiles"]}  # they begin where others end: one build for all


@triton.jit(**_ANYWHERE)
def gate_up_kernel(
    x, pairs, tiles, slots, slot_stride, h,
    top_k: tl.constexpr, H: tl.constexpr, FF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """h [R, FF] = silu(x G^T) * (x U^T); x [T, H], pairs [R], tiles [programs, 3]; a slot begins with G, U [FF, H]."""
    tile = tiles + 3 * tl.program_id(1)
    slot, first, stop = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    rows, columns = first + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    live, within = rows < stop, columns < FF
    tokens = tl.load(pairs + rows, mask=live, other=0) // top_k
    gate_at = slots + slot * slot_stride + columns[None, :] * H
    gate, up = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for start in range(0, H, BK):
        k = start + tl.arange(0, BK)
        inside = k < H
        part = tl.load(x + tokens[:, None] * H + k[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        some = inside[:, None] & within[None, :]
        gate += tl.dot(part, tl.load(gate_at + k[:, None], mask=some, other=0.0))
        up += tl.dot(part, tl.load(gate_at + FF * H + k[:, None], mask=some, other=0.0))
    found = gate * tl.sigmoid(gate) * up
    tl.store(h + rows[:, None] * FF + columns[None, :], found.to(h.dtype.element_ty), live[:, None] & within[None, :])


@triton.jit(**_ANYWHERE)
def down_kernel(
    h, pairs, tiles, slots, slot_stride, each,
    H: tl.constexpr, FF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """each [T k, H] fp32 at the rows' pairs = h D^T; h [R, FF]; D [H, FF] lies behind G and U."""
    tile = tiles + 3 * tl.program_id(1)
    slot, first, stop = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    rows, columns = first + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    live, within = rows < stop, columns < H
    down_at = slots + slot * slot_stride + 2 * FF * H + columns[None, :] * FF
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, FF, BK):
        k = start + tl.arange(0, BK)
        inside = k < FF
        part = tl.load(h + rows[:, None] * FF + k[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        total += tl.dot(part, tl.load(down_at + k[:, None], mask=inside[:, None] & within[None, :], other=0.0))
    at = tl.load(pairs + rows, mask=live, other=0)
    tl.store(each + at[:, None] * H + columns[None, :], total, mask=live[:, None] & within[None, :])


@triton.jit
def add_kernel(hidden, each, gates, out, top_k: tl.constexpr, H: tl.constexpr, BN: tl.constexpr):
    """out [T, H] = hidden + the sum over choices of gates [T, k] * each [T k, H], rounded before it is added."""
    token, columns = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN)
    within, total = columns < H, tl.zeros((BN,), tl.float32)
    for choice in range(top_k):
        pair = token * top_k + choice
        gate = tl.load(gates + pair).to(tl.float32)
        total += gate * tl.load(each + pair * H + columns, mask=within, other=0.0)
    at = token * H + columns
    before = tl.load(hidden + at, mask=within, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (before + rounded).to(out.dtype.element_ty), mask=within)

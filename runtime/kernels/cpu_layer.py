"""A layer's experts on the CPU, for many tokens or few: routed rows in, weighted sums out.

With a few tokens an expert is a matter of reading its weights once; with many, of products at the processor's rate.
What lies between products is kept in scratch memory, and sums are made in one pass over it: a policy leaves the CPU a
small part of each expert's rows, beside which passes over all tokens' outputs would take as long as the products. Where
experts have about as many tokens each, all of them go in one batched product, padded: an operation for every expert
would wait for Python's lock every time, and small products leave cores idle (16 cores, 8 experts of 400 tokens, 592
rows: 20 ms instead of 29).

T tokens, k top_k, E experts, H hidden_size, I rows of a slab, S slabs, n tokens of an expert, N of the busiest one.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from runtime.kernels.cpu_combine import combine_experts
from runtime.kernels.cpu_experts import experts_backend
from runtime.kernels.expert_ffn import FEW_ROWS, few_rows_of_slab
from runtime.kernels.routed_rows import RoutedRows, routed_rows
from runtime.memory.scratch import Scratch
from runtime.memory.slab_tensors import SlabTensors

BLOCK_BYTES = 64 << 20  # of routed hidden states at a time: bounds the scratch memory, and caches hold more of it
PADDING = 1.3  # times the rows there are, up to which padding costs less than products one by one


def cpu_layer(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    num_experts: int,
    slabs: list[SlabTensors],
    out: Tensor,
    scratch: Scratch,
) -> None:
    """Writes each token's weighted sum over its experts' rows in `slabs` to `out` [T, H].

    x [T, H], experts [T, k] int64, weights [T, k]; on the CPU. Without slabs `out` is zero.
    """
    if not slabs:
        out.zero_()
        return
    step, threads = max(1, BLOCK_BYTES // (experts.shape[1] * x.shape[1] * x.element_size())), torch.get_num_threads()
    for start in range(0, len(x), step):
        own = slice(start, start + step)
        parts, places = _parts(routed_rows(x[own], experts[own], num_experts), slabs, scratch)
        where = torch.from_numpy(places).view(experts[own].shape)
        combine_experts(parts, where, weights[own].float().contiguous(), out[own], threads)


Parts = tuple[Tensor, NDArray[np.int64]]
"""Outputs [S, R, H], and the row of each (token, choice) among R."""


def _parts(rows: RoutedRows, slabs: list[SlabTensors], scratch: Scratch) -> Parts:
    if rows.counts.max() <= FEW_ROWS and experts_backend() == "compiled":
        return _few(rows, slabs, scratch)
    experts = len(rows.counts)
    if rows.padded * experts <= PADDING * len(rows.order) and all(w.slab.experts == experts for w in slabs):
        return _batched(rows, slabs, scratch)
    return _one_by_one(rows, slabs, scratch)


def _batched(rows: RoutedRows, slabs: list[SlabTensors], scratch: Scratch) -> Parts:
    """R = E N; rows that are padding hold something that nobody reads."""
    experts, n, hidden, dtype = len(rows.counts), rows.padded, rows.x.shape[1], rows.x.dtype
    slots = np.arange(len(rows.order)) - np.repeat(rows.ends[:-1], rows.counts)
    slots += n * np.repeat(np.arange(experts), rows.counts)  # of the sorted rows, among E N
    tokens, places = np.zeros(experts * n, np.int64), np.empty_like(rows.order)
    tokens[slots], places[rows.order] = rows.order // rows.top_k, slots
    x = torch.index_select(rows.x, 0, torch.from_numpy(tokens), out=scratch("x", (experts * n, hidden), dtype))
    parts = scratch("parts", (len(slabs), experts, n, hidden), dtype)
    for part, weights in zip(parts, slabs, strict=True):
        i = weights.slab.rows
        both = scratch("gate_up", (experts, n, 2 * i), dtype)
        torch.bmm(x.view(experts, n, hidden), weights.gate_up.transpose(1, 2), out=both)
        torch.bmm(_gated(both, scratch), weights.down.transpose(1, 2), out=part)
    return parts.view(len(slabs), experts * n, hidden), places


def _gated(both: Tensor, scratch: Scratch) -> Tensor:
    """both [..., 2 I], gate rows, then up rows -> silu(gate) * up, [..., I]."""
    gate, up = both.chunk(2, dim=-1)
    return torch.mul(silu(gate, inplace=True), up, out=scratch("h", tuple(up.shape), both.dtype))


def _one_by_one(rows: RoutedRows, slabs: list[SlabTensors], scratch: Scratch) -> Parts:
    """R = T k, in order of the experts."""
    parts = scratch("parts", (len(slabs), len(rows.order), rows.x.shape[1]), rows.x.dtype)
    for part, weights in zip(parts, slabs, strict=True):
        _add_experts(rows, weights, part, scratch)
    return parts, np.argsort(rows.order)


def _add_experts(rows: RoutedRows, weights: SlabTensors, part: Tensor, scratch: Scratch) -> None:
    """part [T k, H]; rows of experts outside the slab are zero."""
    slab, hidden = weights.slab, rows.x.shape[1]
    part[: rows.of(slab.first_expert).start] = 0
    part[rows.of(slab.last_expert - 1).stop :] = 0
    for at, expert in enumerate(range(slab.first_expert, slab.last_expert)):
        own, n = rows.of(expert), int(rows.counts[expert])
        if not n:
            continue
        taken = torch.from_numpy(rows.order[own] // rows.top_k)
        x = torch.index_select(rows.x, 0, taken, out=scratch("x", (n, hidden), rows.x.dtype))
        both = torch.mm(x, weights.gate_up[at].t(), out=scratch("gate_up", (n, 2 * slab.rows), x.dtype))
        torch.mm(_gated(both, scratch), weights.down[at].t(), out=part[own])


def _few(rows: RoutedRows, slabs: list[SlabTensors], scratch: Scratch) -> Parts:
    """R = T k, by (token, choice), in fp32; rows of experts outside a slab are zero."""
    parts = scratch("few_parts", (len(slabs), len(rows.order), rows.x.shape[1]), torch.float32)
    for part, weights in zip(parts, slabs, strict=True):
        if weights.slab.experts < len(rows.counts):
            part.zero_()
        few_rows_of_slab(rows.x, rows.order, rows.ends, weights, part)
    return parts, np.arange(len(rows.order))

"""A layer's experts on the CPU, for many tokens or few: routed rows in, weighted sums out.

With a few tokens an expert is a matter of reading its weights once; with many, of products at the processor's rate.
What lies between products is kept in scratch memory and stays in caches, expert by expert: a policy leaves the CPU a
small part of each expert's rows, beside which passes over all tokens' outputs would take as long as the products.

T tokens, k top_k, E experts, H hidden_size, I rows of a slab, S slabs, n tokens of an expert.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from runtime.kernels.cpu_combine import combine_experts
from runtime.kernels.cpu_experts import addresses, experts_backend, few_token_experts
from runtime.kernels.expert_ffn import FEW_ROWS
from runtime.memory.scratch import Scratch
from runtime.memory.slab_tensors import SlabTensors


@dataclass(frozen=True)
class RoutedRows:
    """x [T, H]; order [T k]: (token, choice) pairs by expert; ends [E + 1]: where each expert's begin, and the end."""

    x: Tensor
    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    top_k: int

    def of(self, expert: int) -> slice:
        """The expert's rows in `order`."""
        return slice(int(self.ends[expert]), int(self.ends[expert + 1]))


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
    if not slabs or not len(x):
        out.zero_()
        return
    rows = _routed(x, experts, num_experts)
    few = np.diff(rows.ends).max() <= FEW_ROWS and experts_backend() == "compiled"
    shape = (len(slabs), len(rows.order), x.shape[1])
    parts = scratch("parts", shape, torch.float32 if few else x.dtype)
    for part, slab in zip(parts, slabs, strict=True):
        if few:
            _few(rows, slab, part)
        else:
            _many(rows, slab, part, scratch)
    places = np.arange(len(rows.order)) if few else np.argsort(rows.order)  # few: written pair by pair
    where = torch.from_numpy(places).view(experts.shape)
    combine_experts(parts, where, weights.float().contiguous(), out, torch.get_num_threads())


def _routed(x: Tensor, experts: Tensor, num_experts: int) -> RoutedRows:
    chosen = experts.reshape(-1).numpy()
    ends = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=num_experts))])
    return RoutedRows(x, np.argsort(chosen, kind="stable"), ends, experts.shape[1])


def _many(rows: RoutedRows, weights: SlabTensors, part: Tensor, scratch: Scratch) -> None:
    """part [T k, H], in order of the experts; rows of experts outside the slab are zero."""
    slab, hidden = weights.slab, rows.x.shape[1]
    part[: rows.of(slab.first_expert).start] = 0
    part[rows.of(slab.last_expert - 1).stop :] = 0
    for at, expert in enumerate(range(slab.first_expert, slab.last_expert)):
        own = rows.of(expert)
        n = own.stop - own.start
        if not n:
            continue
        taken = torch.from_numpy(rows.order[own] // rows.top_k)
        x = torch.index_select(rows.x, 0, taken, out=scratch("x", (n, hidden), rows.x.dtype))
        both = torch.mm(x, weights.gate_up[at].t(), out=scratch("gate_up", (n, 2 * slab.rows), x.dtype))
        gate, up = both.chunk(2, dim=-1)
        h = torch.mul(silu(gate, inplace=True), up, out=scratch("h", (n, slab.rows), x.dtype))
        torch.mm(h, weights.down[at].t(), out=part[own])


def _few(rows: RoutedRows, weights: SlabTensors, part: Tensor) -> None:
    """part [T k, H] fp32, by (token, choice); rows of experts outside the slab are zero."""
    slab = weights.slab
    if slab.experts < len(rows.ends) - 1:
        part.zero_()
    listed = [e for e in range(slab.first_expert, slab.last_expert) if rows.ends[e + 1] > rows.ends[e]]
    first = rows.of(slab.first_expert).start
    starts = np.array([0, *(rows.of(e).stop - first for e in listed)], np.int64)
    at = [e - slab.first_expert for e in listed]
    places = np.array([addresses(weights.gate_up[i], weights.down[i]) for i in at], np.int64).reshape(-1, 2)
    pairs = rows.order[first : rows.of(slab.last_expert - 1).stop]
    few_token_experts(rows.x, pairs, starts, places, slab.rows, part, torch.get_num_threads())

"""Routed experts over tokens sorted by expert: one grouped matmul where the device has one, else expert by expert.

T tokens, k top_k, E experts, H hidden_size, I rows of a slab.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from hrm.roofline.sizes import EXPERT_PIECE_BYTES, EXPERT_PIECE_ROWS
from runtime.kernels.cpu_experts import addresses, experts_backend, few_token_experts
from runtime.kernels.expert_mlp import expert_mlp
from runtime.memory.slab_tensors import SlabTensors

FEW_ROWS = 8  # per expert: with more, PyTorch's products gain from their blocking
OPERAND_BYTES = 16  # rows of a grouped matmul's operands begin at multiples of this


@dataclass(frozen=True)
class SortedTokens:
    """Tokens once per chosen expert, in order of the experts.

    x: [T k, H]; ends: [E] int32, where each expert's rows end; counts: the same as numbers, where the host knows them;
    back: [T k], row of x for each (token, choice); weights: [T, 1, k] fp32.
    """

    x: Tensor
    ends: Tensor
    counts: list[int] | None
    back: Tensor
    weights: Tensor

    @cached_property
    def host_ends(self) -> list[int]:
        """`ends` as numbers; waits for the device where the host does not know them."""
        found: list[int] = self.ends.tolist() if self.counts is None else list(accumulate(self.counts))
        return found


def sort_tokens(x: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> SortedTokens:
    """x [T, H], experts [T, k], weights [T, k]. The host learns counts only where experts go one by one."""
    tokens, top_k = experts.shape
    chosen, order = experts.reshape(-1).sort(stable=True)  # [T k]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    all_experts = torch.arange(num_experts, device=x.device)
    ends = torch.searchsorted(chosen, all_experts, right=True, out_int32=True)
    counts = torch.bincount(chosen, minlength=num_experts).tolist() if not goes_grouped(x.device, x.dtype) else None
    return SortedTokens(x[order // top_k], ends, counts, back, weights.float().view(tokens, 1, top_k))


def goes_grouped(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all experts go in one grouped matmul, and not one by one."""
    return device.type == "cuda" and dtype != torch.float32


def add_slabs(total: Tensor | None, tokens: SortedTokens, slabs: list[SlabTensors]) -> Tensor | None:
    """What the slabs' rows add to every sorted row, onto `total`, [T k, H] fp32; None is nothing yet."""
    for slab in slabs:
        if not slab.slab.rows:
            continue
        for part in _slab_parts(tokens, slab):
            total = part.float() if total is None else total.add_(part)
    return total


def combine(total: Tensor, tokens: SortedTokens) -> Tensor:
    """total [T k, H] fp32, in order of experts -> [T, H] fp32: weighted and summed over each token's experts."""
    size, top_k = tokens.weights.shape[0], tokens.weights.shape[2]
    return torch.bmm(tokens.weights, total[tokens.back].view(size, top_k, -1)).view(size, -1)


def _slab_parts(tokens: SortedTokens, weights: SlabTensors) -> Iterator[Tensor]:
    """[T k, H] tensors that add up, by grouped matmuls where the device has them and the slab is aligned for them.

    Rows go in pieces, so that what lies between the two matmuls stays small however many tokens there are.
    """
    rows, itemsize, whole = weights.slab.rows, tokens.x.element_size(), weights.slab.experts == len(tokens.ends)
    if not whole or tokens.counts is not None or rows * itemsize % OPERAND_BYTES:
        yield _expert_by_expert(tokens, weights)
        return
    most = EXPERT_PIECE_BYTES // (2 * itemsize * max(1, len(tokens.x)))
    step = max(EXPERT_PIECE_ROWS, most // EXPERT_PIECE_ROWS * EXPERT_PIECE_ROWS)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        hidden = _gated(tokens, weights.gate_up, rows, start, stop)  # [T k, r]
        yield torch._grouped_mm(hidden, weights.down[:, :, start:stop].transpose(1, 2), offs=tokens.ends)


def _gated(tokens: SortedTokens, gate_up: Tensor, rows: int, start: int, stop: int) -> Tensor:
    """silu(gate) * up of rows [start, stop): [T k, stop - start]; one matmul where these are all rows."""
    if stop - start == rows:
        gate, up = torch._grouped_mm(tokens.x, gate_up.transpose(1, 2), offs=tokens.ends).chunk(2, dim=-1)
        return silu(gate) * up
    gate = torch._grouped_mm(tokens.x, gate_up[:, start:stop].transpose(1, 2), offs=tokens.ends)
    up = torch._grouped_mm(tokens.x, gate_up[:, rows + start : rows + stop].transpose(1, 2), offs=tokens.ends)
    return silu(gate, inplace=True).mul_(up)


def _expert_by_expert(tokens: SortedTokens, weights: SlabTensors) -> Tensor:
    """[T k, H]; rows of experts outside the slab are zero."""
    if _has_few_rows(tokens):
        return _few_rows(tokens, weights)
    y, slab = torch.zeros_like(tokens.x), weights.slab
    ends = tokens.host_ends
    for at, expert in enumerate(range(slab.first_expert, slab.last_expert)):
        rows = slice(ends[expert - 1] if expert else 0, ends[expert])
        if rows.stop > rows.start:
            y[rows] = expert_mlp(tokens.x[rows], weights.gate_up[at], weights.down[at])
    return y


def _has_few_rows(tokens: SortedTokens) -> bool:
    """Whether experts run on the CPU with so few rows each that reading their weights is all the work."""
    if tokens.x.device.type != "cpu" or tokens.counts is None or not len(tokens.x):
        return False
    return max(tokens.counts) <= FEW_ROWS and experts_backend() == "compiled"


def _few_rows(tokens: SortedTokens, weights: SlabTensors) -> Tensor:
    """[T k, H] fp32; each sorted row is a token of its own to the kernel."""
    y, ends = torch.zeros(tokens.x.shape, dtype=torch.float32), np.array([0, *tokens.host_ends])
    few_rows_of_slab(tokens.x, np.arange(len(tokens.x)), ends, weights, y)
    return y


def few_rows_of_slab(
    x: Tensor, pairs: NDArray[np.int64], ends: NDArray[np.int64], weights: SlabTensors, out: Tensor
) -> None:
    """What a slab's experts give for few rows each, to their rows of `out`; other rows stay.

    x, pairs, out: as `few_token_experts` takes them, pairs of all experts in order; ends [E + 1]: where each expert's
    begin, and the end.
    """
    slab = weights.slab
    experts = np.arange(slab.first_expert, slab.last_expert)
    listed = experts[ends[experts + 1] > ends[experts]]
    first, last = ends[slab.first_expert], ends[slab.last_expert]
    starts = np.array([0, *(ends[listed + 1] - first)], np.int64)
    at = listed - slab.first_expert
    places = np.array([addresses(weights.gate_up[i], weights.down[i]) for i in at], np.int64).reshape(-1, 2)
    few_token_experts(x, pairs[first:last], starts, places, slab.rows, out, torch.get_num_threads())

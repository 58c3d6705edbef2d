"""Routed experts over tokens sorted by expert: one grouped matmul where the device has one, else expert by expert.

T tokens, k top_k, E experts, H hidden_size, I rows of a slab.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from runtime.memory.slab_tensors import SlabTensors

OPERAND_BYTES = 16  # rows of a grouped matmul's operands begin at multiples of this


@dataclass(frozen=True)
class SortedTokens:
    """Tokens once per chosen expert, in order of the experts.

    x: [T k, H]; ends: [E] int32, where each expert's rows end; counts: the same as numbers, where the host knows them;
    back: [T k], row of x for each (token, choice); weights: [T, 1, k] in the dtype of x.
    """

    x: Tensor
    ends: Tensor
    counts: list[int] | None
    back: Tensor
    weights: Tensor


def sort_tokens(x: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> SortedTokens:
    """x [T, H], experts [T, k], weights [T, k]. The host learns counts only where experts go one by one."""
    tokens, top_k = experts.shape
    order = experts.reshape(-1).argsort(stable=True)  # [T k]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, experts.reshape(-1), torch.ones_like(order))
    one_by_one = not x.is_cuda or x.dtype == torch.float32
    known = counts.tolist() if one_by_one else None
    ends = counts.cumsum(0).to(torch.int32)
    return SortedTokens(x[order // top_k], ends, known, back, weights.to(x.dtype).view(tokens, 1, top_k))


def slab_outputs(tokens: SortedTokens, slabs: list[SlabTensors]) -> Iterator[Tensor]:
    """What the slabs' rows add to each token, weighted and summed over its experts: [T, H] tensors to be added up.

    Slabs of single experts touch different rows and make one tensor together.
    """
    parts = [slab for slab in slabs if slab.slab.experts < len(tokens.ends)]
    if parts:
        yield _combined(tokens, _expert_by_expert(tokens, parts))
    for slab in slabs:
        if slab.slab.experts == len(tokens.ends) and slab.slab.rows:
            yield _combined(tokens, _all_experts(tokens, slab))


def _combined(tokens: SortedTokens, y: Tensor) -> Tensor:
    """y [T k, H], in order of experts -> [T, H]."""
    size, top_k = tokens.weights.shape[0], tokens.weights.shape[2]
    return torch.bmm(tokens.weights, y[tokens.back].view(size, top_k, -1)).view(size, -1)


def _all_experts(tokens: SortedTokens, weights: SlabTensors) -> Tensor:
    """[T k, H] by two grouped matmuls where the device has them and the slab is aligned for them."""
    rows = weights.slab.rows
    if tokens.counts is not None or rows * tokens.x.element_size() % OPERAND_BYTES:
        return _expert_by_expert(tokens, [weights])
    both = torch._grouped_mm(tokens.x, weights.gate_up.transpose(1, 2), offs=tokens.ends)  # [T k, 2 I]
    hidden = silu(both[:, :rows]).mul_(both[:, rows:])  # [T k, I]
    y: Tensor = torch._grouped_mm(hidden, weights.down.transpose(1, 2), offs=tokens.ends)  # [T k, H]
    return y


def _expert_by_expert(tokens: SortedTokens, slabs: list[SlabTensors]) -> Tensor:
    """[T k, H]; rows of experts outside the slabs are zero."""
    y = torch.zeros_like(tokens.x)
    ends = tokens.ends.tolist() if tokens.counts is None else list(accumulate(tokens.counts))
    for weights in slabs:
        for at, expert in enumerate(range(weights.slab.first_expert, weights.slab.last_expert)):
            rows = slice(ends[expert - 1] if expert else 0, ends[expert])
            if rows.stop > rows.start and weights.slab.rows:
                y[rows] = expert_mlp(tokens.x[rows], weights.gate_up[at], weights.down[at])
    return y


def expert_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [T, H], gate_up [2 I, H], down [H, I] -> [T, H]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(silu(gate) * up, down)

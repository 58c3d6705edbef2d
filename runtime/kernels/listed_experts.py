"""Some experts on the CPU for the tokens that chose them, from weights where they lie.

T tokens, k top_k, E experts, H hidden_size, R rows: (token, choice) pairs of the listed experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.kernels.cpu_experts import Backend, few_token_experts
from runtime.kernels.expert_ffn import FEW_ROWS
from runtime.kernels.slot_ffn import rows_in_slots

Ints = NDArray[np.int64]


def listed_experts(
    x: Tensor,
    gates: Tensor,
    experts: Ints,
    listed: Sequence[int],
    addresses: Ints,
    intermediate: int,
    threads: int,
    most_rows: int = FEW_ROWS,
) -> Tensor:
    """x [T, H], gates [T, k], experts [T, k] -> [T, H] fp32: what the listed experts add to each token, weighted.

    addresses: [E, 2] int64, of every expert's gate_up [2 I, H] and down [H, I] in x's dtype; they are trusted. An
    expert of up to most_rows rows goes to the kernel that reads weights once, one of more to PyTorch's matmuls.
    """
    total = torch.zeros(x.shape, dtype=torch.float32)
    rows = rows_in_slots(experts, {expert: place for place, expert in enumerate(listed)}, len(addresses))
    if not len(rows.pairs):
        return total
    pairs = torch.from_numpy(rows.pairs)
    tokens = pairs // experts.shape[1]
    each, own = torch.empty(len(pairs), x.shape[1], dtype=torch.float32), x[tokens]  # a token of its own for every row
    where, counts = addresses[list(listed)], np.bincount(rows.slots, minlength=len(listed))
    few = counts <= most_rows
    parts: tuple[tuple[NDArray[np.bool_], Backend], ...] = ((few, "auto"), (~few, "torch"))
    for chosen, backend in parts:
        if not chosen.any():
            continue
        part = np.flatnonzero(chosen[rows.slots])
        starts = np.concatenate(([0], np.cumsum(counts[chosen]))).astype(np.int64)
        few_token_experts(own, part, starts, where[chosen], intermediate, each, threads, backend)
    return total.index_add_(0, tokens, each.mul_(gates.reshape(-1)[pairs].float()[:, None]))

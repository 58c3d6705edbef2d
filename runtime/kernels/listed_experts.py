"""Some experts on the CPU for the tokens that chose them, from weights where they lie.

T tokens, k top_k, E experts, H hidden_size, R rows: (token, choice) pairs of the listed experts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.host_counter import Signal
from runtime.kernels.cpu_combine import combine_experts
from runtime.kernels.cpu_experts import few_token_experts
from runtime.kernels.cpu_listed import all_in_one_call
from runtime.kernels.expert_ffn import FEW_ROWS
from runtime.memory.scratch import Scratch

Ints = NDArray[np.int64]


def listed_experts(
    x: Tensor,
    gates: Tensor,
    experts: Ints,
    listed: Sequence[int],
    addresses: Ints,
    intermediate: int,
    out: Tensor,
    threads: int,
    scratch: Scratch,
    most_rows: int = FEW_ROWS,
    signal: Signal | None = None,
) -> None:
    """x [T, H], gates [T, k], experts [T, k] -> out [T, H]: what the listed experts add to each token, weighted.

    addresses: [E, 2] int64, of every expert's gate_up [2 I, H] and down [H, I] in x's dtype; they are trusted. An
    expert of up to most_rows rows goes to the kernel that reads weights once, one of more to PyTorch's matmuls. Where
    no expert has more all is one call, which gives up Python's lock, and gives `signal`.
    """
    each = scratch("listed", (experts.size + 1, x.shape[1]), torch.float32)  # a row for every pair, and one of zeros
    given = x, gates, experts, np.array(listed, np.int64), addresses, intermediate, each, out, threads, most_rows
    if all_in_one_call(*given, signal):
        return
    pairs, counts = _rows_of(experts, listed, len(addresses))
    if not len(pairs):
        out.zero_()
        return
    where = addresses[list(listed)]
    few = counts <= most_rows
    if few.all():
        few_token_experts(x, pairs, _starts(counts), where, intermediate, each[:-1], threads)
    else:
        of_few = np.repeat(few, counts)
        few_token_experts(x, pairs[of_few], _starts(counts[few]), where[few], intermediate, each[:-1], threads)
        many = pairs[~of_few], _starts(counts[~few]), where[~few]
        few_token_experts(x, *many, intermediate, each[:-1], threads, "torch")
    each[-1].zero_()
    rows = np.full(experts.size, experts.size, np.int64)
    rows[pairs] = pairs
    combine_experts(each[None], torch.from_numpy(rows.reshape(experts.shape)), gates.float(), out, threads)


def _rows_of(experts: Ints, listed: Sequence[int], num_experts: int) -> tuple[Ints, Ints]:
    """Pairs of the listed experts [R], expert after expert, and how many each has."""
    place_of = np.full(num_experts, len(listed), np.int64)
    place_of[list(listed)] = np.arange(len(listed))
    places = place_of[experts.reshape(-1)]
    counts = np.bincount(places, minlength=len(listed))[: len(listed)]
    return np.argsort(places, kind="stable")[: counts.sum()], counts


def _starts(counts: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(counts)))

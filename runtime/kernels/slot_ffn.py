"""Routed experts that lie in slots: what those in place add to every token, wherever they lie.

T tokens, k top_k, H hidden_size, I intermediate_size, R rows: (token, choice) pairs whose expert is in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from runtime.kernels.expert_ffn import OPERAND_BYTES, expert_mlp, goes_grouped
from runtime.memory.slab_tensors import SlabTensors
from runtime.memory.staging import Staging, Upload, view_of

MOST_GROUPS = 1000  # slots that one grouped matmul goes through; it takes no more than 1,024
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SlotWeights:
    """The slots' matrices. expert(slot): one of them. stacked(first, last): [slots, 2 I, H] and [slots, H, I]."""

    expert: Callable[[int], SlabTensors]
    stacked: Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SlotRows:
    """R pairs in order of their slots: number of the pair, t k + c, and its slot."""

    pairs: Ints
    slots: Ints

    def between(self, first: int, last: int) -> "SlotRows":
        """Those of slots [first, last)."""
        a, b = np.searchsorted(self.slots, (first, last))
        return SlotRows(self.pairs[a:b], self.slots[a:b])


def rows_in_slots(experts: Ints, slot_of: Mapping[int, int], num_experts: int) -> SlotRows:
    """experts [T, k] -> the pairs whose expert has a slot."""
    table = np.full(num_experts, -1, np.int64)
    table[list(slot_of)] = list(slot_of.values())
    slots = table[experts.reshape(-1)]
    here = np.flatnonzero(slots >= 0)
    order = here[np.argsort(slots[here], kind="stable")]
    return SlotRows(order, slots[order])


def add_slots(
    out: Tensor, x: Tensor, weights: Tensor, rows: SlotRows, slots: SlotWeights, num_slots: int, staging: Staging
) -> None:
    """Adds the weighted outputs of the rows to out [T, H] fp32; x [T, H], weights [T, k] fp32.

    Every pair has a place of its own in between, so that sums do not depend on the order of anything. staging: brings
    the indices over; not to be used again before the device is through.
    """
    size, top_k = weights.shape
    if not len(rows.pairs):
        return
    each = torch.zeros((size * top_k, x.shape[1]), dtype=torch.float32, device=x.device)  # [T k, H]
    if goes_grouped(x.device, x.dtype) and slots.expert(0).slab.rows * x.element_size() % OPERAND_BYTES == 0:
        _grouped(each, x, top_k, rows, slots, num_slots, staging)
    else:
        _one_by_one(each, x, top_k, rows, slots)
    out += torch.bmm(weights.view(size, 1, top_k), each.view(size, top_k, -1)).view(size, -1)


def _one_by_one(each: Tensor, x: Tensor, top_k: int, rows: SlotRows, slots: SlotWeights) -> None:
    borders = np.flatnonzero(np.diff(rows.slots, prepend=-1))
    for start, stop in zip(borders, [*borders[1:], len(rows.slots)], strict=True):
        pairs = torch.from_numpy(rows.pairs[start:stop]).to(x.device)
        matrices = slots.expert(int(rows.slots[start]))
        each[pairs] = expert_mlp(x[pairs // top_k], matrices.gate_up[0], matrices.down[0]).float()


def _grouped(
    each: Tensor, x: Tensor, top_k: int, rows: SlotRows, slots: SlotWeights, num_slots: int, staging: Staging
) -> None:
    """A few grouped matmuls, each over all slots of a range; slots without rows are empty groups."""
    ranges = [(first, min(first + MOST_GROUPS, num_slots)) for first in range(0, num_slots, MOST_GROUPS)]
    parts = [(first, last, own) for first, last in ranges if len((own := rows.between(first, last)).pairs)]
    upload = Upload()
    pairs_at = upload.add(rows.pairs)
    ends_at = [
        upload.add(np.searchsorted(own.slots, np.arange(first, last), side="right")) for first, last, own in parts
    ]
    sent = upload.send(staging, x.device)
    pairs, start = view_of(sent, pairs_at), 0
    for (first, last, own), place in zip(parts, ends_at, strict=True):
        mine = pairs[start : start + len(own.pairs)]
        start += len(own.pairs)
        gate_up, down = slots.stacked(first, last)
        ends = view_of(sent, place).to(torch.int32)
        both = torch._grouped_mm(x[mine // top_k], gate_up.transpose(1, 2), offs=ends)  # [R, 2 I]
        gate, up = both.chunk(2, dim=-1)
        each[mine] = torch._grouped_mm(silu(gate) * up, down.transpose(1, 2), offs=ends).float()

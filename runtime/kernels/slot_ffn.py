"""Routed experts that lie in slots: what those in place give for every token, wherever they lie.

T tokens, k top_k, H hidden_size, I intermediate_size, R rows: (token, choice) pairs whose expert is in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from runtime.kernels.expert_ffn import OPERAND_BYTES, goes_grouped
from runtime.kernels.expert_mlp import expert_mlp
from runtime.memory.slab_tensors import SlabTensors
from runtime.memory.staging import Staging, Upload, view_of

MOST_GROUPS = 1000  # slots that one grouped matmul goes through; it takes no more than 1,024
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SlotWeights:
    """The slots' matrices. expert(slot): one of them. stacked(first, last): [slots, 2 I, H] and [slots, H, I]."""

    count: int
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


@dataclass(frozen=True)
class Group:
    """Rows of slots [first, last) on the device: pairs [r], and where each slot's rows end [slots] int32."""

    first: int
    last: int
    pairs: Tensor
    ends: Tensor


def rows_in_slots(experts: Ints, slot_of: Mapping[int, int], num_experts: int) -> SlotRows:
    """experts [T, k] -> the pairs whose expert has a slot."""
    table = np.full(num_experts, -1, np.int64)
    table[list(slot_of)] = list(slot_of.values())
    slots = table[experts.reshape(-1)]
    here = np.flatnonzero(slots >= 0)
    order = here[np.argsort(slots[here], kind="stable")]
    return SlotRows(order, slots[order])


def bring_over(
    rows: Mapping[int, SlotRows], num_slots: int, staging: Staging, device: torch.device
) -> dict[int, list[Group]]:
    """Rows by micro-batch, in groups that a grouped matmul takes, in one piece past the copy engine's queue.

    staging: not to be used again before the device is through.
    """
    upload, places = Upload(), []
    for j, own in rows.items():
        for first in range(0, num_slots, MOST_GROUPS):
            last = min(first + MOST_GROUPS, num_slots)
            part = own.between(first, last)
            if len(part.pairs):
                ends = np.searchsorted(part.slots, np.arange(first, last), side="right")
                places.append((j, first, last, upload.add(part.pairs), upload.add(ends)))
    sent = upload.send(staging, device)
    found: dict[int, list[Group]] = {j: [] for j in rows}
    for j, first, last, pairs, ends_at in places:
        found[j].append(Group(first, last, view_of(sent, pairs), view_of(sent, ends_at).to(torch.int32)))
    return found


def runs_grouped(x: Tensor, slots: SlotWeights) -> bool:
    """Whether the device has grouped matmuls, and the experts' rows are aligned for them."""
    aligned = slots.expert(0).slab.rows * x.element_size() % OPERAND_BYTES == 0
    return goes_grouped(x.device, x.dtype) and aligned


def fill_grouped(each: Tensor, x: Tensor, top_k: int, groups: list[Group], slots: SlotWeights) -> None:
    """Each pair's output to its row of each [T k, H] fp32; x [T, H]. Slots without rows are empty groups."""
    for group in groups:
        gate_up, down = slots.stacked(group.first, group.last)
        both = torch._grouped_mm(x[group.pairs // top_k], gate_up.transpose(1, 2), offs=group.ends)  # [r, 2 I]
        gate, up = both.chunk(2, dim=-1)
        each[group.pairs] = torch._grouped_mm(silu(gate) * up, down.transpose(1, 2), offs=group.ends).float()


def fill_one_by_one(each: Tensor, x: Tensor, top_k: int, rows: SlotRows, slots: SlotWeights) -> None:
    """The same, slot by slot."""
    borders = [*np.flatnonzero(np.diff(rows.slots, prepend=-1)), len(rows.slots)]
    for start, stop in pairwise(borders):
        pairs = torch.from_numpy(rows.pairs[start:stop]).to(x.device)
        matrices = slots.expert(int(rows.slots[start]))
        each[pairs] = expert_mlp(x[pairs // top_k], matrices.gate_up[0], matrices.down[0]).float()


def weighted_sum(each: Tensor, weights: Tensor) -> Tensor:
    """each [T k, H] fp32, weights [T, k] fp32 -> [T, H]."""
    size, top_k = weights.shape
    return torch.bmm(weights.view(size, 1, top_k), each.view(size, top_k, -1)).view(size, -1)

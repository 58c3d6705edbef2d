"""Routed experts that lie in slots: what they give for rows of hidden states that are in order of the slots.

T tokens, k top_k, H hidden_size, I intermediate_size, R rows: (token, choice) pairs whose expert is in a slot.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from runtime.kernels.expert_ffn import OPERAND_BYTES, goes_grouped
from runtime.kernels.expert_mlp import expert_mlp
from runtime.kernels.slot_rows import SlotRows, Span
from runtime.memory.slab_tensors import SlabTensors
from runtime.memory.staging import Staging, Upload, view_of


@dataclass(frozen=True)
class SlotWeights:
    """Slots as matrices. rows: I; expert(slot): one; stacked(first, last): [slots, 2 I, H] and [slots, H, I]."""

    count: int
    rows: int
    expert: Callable[[int], SlabTensors]
    stacked: Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DeviceRows:
    """A micro-batch's rows, and int32 indices on the device: pairs [R], the rows' own; tokens [R]; places [T k], the
    row of each pair. spans: step by step, with where each slot's rows end.
    """

    rows: SlotRows
    pairs: Tensor
    tokens: Tensor
    places: Tensor
    spans: list[list[tuple[Span, Tensor]]]


def bring_over(
    rows: Mapping[int, SlotRows], sizes: Mapping[int, int], staging: Staging, device: torch.device
) -> dict[int, DeviceRows]:
    """Rows by micro-batch, of so many pairs each, in one piece past the copy engine's queue.

    staging: not to be used again before the device is through.
    """
    upload, added = Upload(np.int32), []
    for j, own in rows.items():
        index = [upload.add(a) for a in (own.pairs, own.pairs // own.top_k, own.places(sizes[j]))]
        spans = [list(own.spans(step)) for step in range(len(own.borders) - 1)]
        added.append((j, index, spans, [[upload.add(span.ends) for span in step] for step in spans]))
    sent = upload.send(staging, device)
    found = {}
    for j, index, spans, at in added:
        pairs, tokens, places = (view_of(sent, place) for place in index)
        ends = ([view_of(sent, place) for place in step] for step in at)
        steps = [list(zip(span, end, strict=True)) for span, end in zip(spans, ends, strict=True)]
        found[j] = DeviceRows(rows[j], pairs, tokens, places, steps)
    return found


def runs_grouped(x: Tensor, slots: SlotWeights) -> bool:
    """Whether the device has grouped matmuls, and the experts' rows are aligned for them."""
    return goes_grouped(x.device, x.dtype) and slots.rows * x.element_size() % OPERAND_BYTES == 0


def fill_step(out: Tensor, x: Tensor, rows: DeviceRows, step: int, slots: SlotWeights, first: int = 0) -> None:
    """A step's outputs to their rows of out [rows, H] fp32, from the same rows of x; both begin with row `first`."""
    grouped = runs_grouped(x, slots)
    for span, ends in rows.spans[step]:
        here = slice(span.start - first, span.stop - first)
        if grouped:
            out[here] = _grouped(x[here], slots.stacked(span.first, span.last), ends)
        else:
            _fill_one_by_one(out, x, rows.rows, span, slots, first)


def _grouped(x: Tensor, matrices: tuple[Tensor, Tensor], ends: Tensor) -> Tensor:
    """x [r, H] -> [r, H]; slots without rows are empty groups."""
    gate_up, down = matrices
    gate, up = torch._grouped_mm(x, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)  # [r, I] each
    return torch._grouped_mm(silu(gate).mul_(up), down.transpose(1, 2), offs=ends)


def _fill_one_by_one(out: Tensor, x: Tensor, rows: SlotRows, span: Span, slots: SlotWeights, first: int) -> None:
    for slot, start, stop in rows.each_slot(span.start, span.stop):
        matrices, here = slots.expert(slot), slice(start - first, stop - first)
        out[here] = expert_mlp(x[here], matrices.gate_up[0], matrices.down[0])


def weighted_sum(each: Tensor, weights: Tensor) -> Tensor:
    """each [T k, H] fp32, weights [T, k] fp32 -> [T, H]."""
    size, top_k = weights.shape
    return torch.bmm(weights.view(size, 1, top_k), each.view(size, top_k, -1)).view(size, -1)

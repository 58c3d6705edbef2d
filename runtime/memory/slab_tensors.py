"""A slab's memory as the matrices of its experts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.memory.expert_layout import Slab


@dataclass(frozen=True)
class SlabTensors:
    """gate_up [experts, 2 rows, H]: gate rows, then up rows. down [experts, H, rows]."""

    slab: Slab
    gate_up: Tensor
    down: Tensor


def view_slab(slab: Slab, memory: Tensor, dtype: torch.dtype, hidden_size: int) -> SlabTensors:
    """Matrices over `memory`, uint8 [at least the slab's bytes], without a copy."""
    experts, rows = slab.experts, slab.rows
    elements = memory[: slab.elements(hidden_size) * dtype.itemsize].view(dtype)
    border = 2 * experts * rows * hidden_size
    gate_up = elements[:border].view(experts, 2 * rows, hidden_size)
    return SlabTensors(slab, gate_up, elements[border:].view(experts, hidden_size, rows))


def pack_expert(target: SlabTensors, expert: int, gate: Tensor, up: Tensor, down: Tensor) -> None:
    """Copies an expert's rows of gate, up [I, H] and its columns of down [H, I] into the slab."""
    slab = target.slab
    if not slab.first_expert <= expert < slab.last_expert or not slab.rows:
        return
    at, rows = expert - slab.first_expert, slice(slab.first_row, slab.last_row)
    target.gate_up[at, : slab.rows] = gate[rows]
    target.gate_up[at, slab.rows :] = up[rows]
    target.down[at] = down[:, rows]

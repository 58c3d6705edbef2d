"""What was sent to the CPU for its experts."""

import torch
from torch import Tensor

from runtime.tasks.state import PassState


def received(
    state: PassState, name: str, members: list[int], shapes: list[tuple[int, int]], dtype: torch.dtype
) -> Tensor:
    """One of the tensors of several micro-batches, row by row; of a single one it is the buffer itself."""
    parts = [state.memory.staging(name, j).host(shape, dtype) for j, shape in zip(members, shapes, strict=True)]
    if len(parts) == 1:
        return parts[0]
    whole = state.memory.scratch(name, (sum(len(part) for part in parts), shapes[0][1]), dtype)
    return torch.cat(parts, out=whole)

"""What was sent to the CPU for its experts."""

import torch
from torch import Tensor

from runtime.tasks.state import PassState


def received(
    state: PassState, name: str, members: list[int], shapes: list[tuple[int, int]], dtype: torch.dtype
) -> Tensor:
    """One of the tensors of several micro-batches, row by row; of a single one it is the buffer itself."""
    parts = [state.memory.staging(name, j).host(shape, dtype) for j, shape in zip(members, shapes, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""One expert by PyTorch's matmuls. T tokens, H hidden_size, I intermediate_size."""

from torch import Tensor
from torch.nn.functional import linear, silu


def expert_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [T, H], gate_up [2 I, H], down [H, I] -> [T, H]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(silu(gate) * up, down)

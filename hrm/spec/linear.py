"""One weight matrix: the widths that an operator model and a parameter count both need."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """y = x W (+ b): x [tokens, in_features], y [tokens, out_features]; `name` as in Hugging Face models."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Elements of W and b."""
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)


def total_parameters(linears: tuple[Linear, ...]) -> int:
    """Elements of all matrices and biases."""
    return sum(linear.parameters for linear in linears)

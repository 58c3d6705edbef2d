"""One operator's work: flops, and bytes per kind of tensor."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Quantity: TypeAlias = "float | NDArray[np.float64]"
"""A number, or an array of them where a whole grid of batch sizes is evaluated at once."""


@dataclass(frozen=True)
class Operator:
    """Work of one operator summed over the layers of a model.

    `op_class` selects the efficiency ("linear", "expert_ffn", "attention"). Bytes are memory traffic assuming every
    tensor is read or written once: weights, KV cache, and activations (input and output).
    """

    name: str
    op_class: str
    flops: Quantity
    weight_bytes: Quantity
    kv_bytes: Quantity
    activation_bytes: Quantity

    @property
    def bytes(self) -> Quantity:
        """All memory traffic at the level where the operator runs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def operational_intensity(self) -> Quantity:
        """Flops per byte of memory traffic at the level where the operator runs."""
        return self.flops / self.bytes


def merge(operators: "list[Operator]") -> tuple[Operator, ...]:
    """Operators of the same name added up, in order of first appearance."""
    merged: dict[str, Operator] = {}
    for op in operators:
        seen = merged.get(op.name)
        merged[op.name] = op if seen is None else _add(seen, op)
    return tuple(merged.values())


def fuse(operators: "tuple[Operator, ...]", kv_copies: float = 1.0) -> Operator:
    """Operators of one kernel as one, named as the first; several GPUs may read `kv_copies` of a KV cache."""
    total = operators[0]
    for op in operators[1:]:
        total = _add(total, op)
    return replace(total, kv_bytes=total.kv_bytes * kv_copies)


def _add(a: Operator, b: Operator) -> Operator:
    return Operator(
        a.name,
        a.op_class,
        a.flops + b.flops,
        a.weight_bytes + b.weight_bytes,
        a.kv_bytes + b.kv_bytes,
        a.activation_bytes + b.activation_bytes,
    )


def scale(op: Operator, factor: float) -> Operator:
    """The operator repeated `factor` times (identical layers)."""
    return Operator(
        op.name,
        op.op_class,
        op.flops * factor,
        op.weight_bytes * factor,
        op.kv_bytes * factor,
        op.activation_bytes * factor,
    )

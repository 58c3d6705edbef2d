"""Bytes of KV cache of a sequence by its tokens, as a table: sliding-window layers hold no more than their window."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.roofline.sizes import Sizes


@dataclass(frozen=True)
class KvTable:
    """`bytes_by_tokens[n]` for n tokens, [longest + 1]; `per_token` where every token takes the same, else None."""

    bytes_by_tokens: NDArray[np.float64]
    per_token: float | None

    def __call__(self, tokens: int) -> float:
        """Bytes of one sequence."""
        return float(self.bytes_by_tokens[tokens])


def kv_table(sizes: Sizes, longest: int) -> KvTable:
    """The table up to `longest` tokens."""
    one = sizes.kv_bytes_per_sequence(1)
    if np.isclose(sizes.kv_bytes_per_sequence(longest), longest * one, rtol=1e-12):
        return KvTable(np.arange(longest + 1, dtype=np.float64) * one, one)
    return KvTable(np.array([0.0, *(sizes.kv_bytes_per_sequence(n) for n in range(1, longest + 1))]), None)

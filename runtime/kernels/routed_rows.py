"""Tokens by the experts they chose, as lists of rows on the CPU. T tokens, k top_k, E experts, H hidden_size."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

GRANULE = 16  # rows of a batched product


@dataclass(frozen=True)
class RoutedRows:
    """x [T, H]; order [T k]: (token, choice) pairs by expert; ends [E + 1]: where each expert's begin, and the end."""

    x: Tensor
    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    top_k: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each expert, [E]."""
        return np.diff(self.ends)

    @cached_property
    def padded(self) -> int:
        """N: rows of the busiest expert, in whole granules."""
        return -(-int(self.counts.max()) // GRANULE) * GRANULE

    def of(self, expert: int) -> slice:
        """The expert's rows in `order`."""
        return slice(int(self.ends[expert]), int(self.ends[expert + 1]))


def routed_rows(x: Tensor, experts: Tensor, num_experts: int) -> RoutedRows:
    """x [T, H], experts [T, k] int64."""
    chosen = experts.reshape(-1).numpy()
    ends = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=num_experts))])
    return RoutedRows(x, np.argsort(chosen, kind="stable"), ends, experts.shape[1])

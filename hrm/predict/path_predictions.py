"""Predicted routing paths: which experts tokens will choose, and which the tokens after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError

Probabilities = NDArray[np.floating[Any]]


class ExpectedDemand(NamedTuple):
    """Probability that some token of a pass chooses an expert, [L, E]; `following`: some token of the pass after it.
    None where nothing is known.
    """

    now: NDArray[np.float64] | None
    following: NDArray[np.float64] | None = None


UNKNOWN = ExpectedDemand(None)


@dataclass(frozen=True, eq=False)
class PathPredictions:
    """Of tokens, the probability that each chooses an expert, [T, L, E]; and that the token behind it does, which
    nobody knows yet, of the same shape, or None.
    """

    now: Probabilities
    following: Probabilities | None = None

    def check(self, shape: tuple[int, ...], where: str) -> None:
        """Refuses predictions of anything but `shape` [T, L, E].

        Raises:
            WorkloadError: another shape, no floats, or a probability outside [0, 1].
        """
        for name, values in (("probabilities", self.now), ("following", self.following)):
            if values is None:
                continue
            if values.shape != shape or values.dtype.kind != "f":
                found = f"{values.dtype} {values.shape}"
                raise WorkloadError(f"{where}: {name} must be floats {shape}, not {found}; predict this trace")
            if not ((values >= 0) & (values <= 1)).all():  # false for nan, too
                raise WorkloadError(f"{where}: a probability lies outside [0, 1]; write the predictions again")

    def of_pass(self, rows: NDArray[np.integer[Any]] | slice) -> ExpectedDemand:
        """What the pass of these tokens and the one after it demand."""
        return ExpectedDemand(
            batch_demand(self.now[rows]), None if self.following is None else batch_demand(self.following[rows])
        )

    def rows(self, rows: NDArray[Any] | slice) -> "PathPredictions":
        """Of some of the tokens."""
        return PathPredictions(self.now[rows], None if self.following is None else self.following[rows])


def joined(parts: Sequence[PathPredictions]) -> PathPredictions:
    """One behind the other; `following` where all have it."""
    following = [part.following for part in parts if part.following is not None]
    whole = len(following) == len(parts)
    return PathPredictions(np.concatenate([p.now for p in parts]), np.concatenate(following) if whole else None)


def batch_demand(probabilities: Probabilities) -> NDArray[np.float64]:
    """Probability [L, E] that one of a batch of tokens [T, L, E] chooses an expert, tokens independent."""
    nobody: NDArray[np.float64] = np.prod(1.0 - probabilities.astype(np.float64), axis=0)
    return 1.0 - nobody

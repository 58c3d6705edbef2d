"""Boxes of (placement, micro-batch size, number of micro-batches): what branch and bound splits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.node import Nodes

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Integer ranges of mu and of the number of micro-batches k, arrays [boxes]; the batch size is mu * k <= cap."""

    placement: Ints
    mu_lo: Ints
    mu_hi: Ints
    k_lo: Ints
    k_hi: Ints
    cap: Ints

    def __len__(self) -> int:
        return len(self.placement)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Boxes":
        """The boxes at `index`."""
        return Boxes(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    @property
    def is_cell(self) -> NDArray[np.bool_]:
        """Whether a box holds a single (mu, k)."""
        single: NDArray[np.bool_] = (self.mu_lo == self.mu_hi) & (self.k_lo == self.k_hi)
        return single

    def nodes(self) -> Nodes:
        """The ranges of batch sizes that the boxes span."""
        widest = np.minimum(self.mu_hi * self.k_hi, self.cap)
        widest = np.where(self.mu_lo == self.mu_hi, self.mu_lo * self.k_hi, widest)
        widest = np.where(self.k_lo == self.k_hi, self.k_lo * self.mu_hi, widest)
        return Nodes(
            self.mu_lo.astype(float), self.mu_hi.astype(float), (self.mu_lo * self.k_lo).astype(float),
            widest.astype(float),
        )  # fmt: skip


def concatenate(parts: list[Boxes]) -> Boxes:
    """All boxes of `parts`."""
    return Boxes(*(np.concatenate([getattr(p, f) for p in parts]) for f in Boxes.__dataclass_fields__))


def cells(placement: Ints, mu: Ints, k: Ints) -> Boxes:
    """Boxes of one (mu, k) each."""
    return Boxes(placement, mu, mu, k, k, mu * k)


def tightened(boxes: Boxes) -> Boxes:
    """Ranges cut to mu * k <= cap; boxes with nothing left dropped."""
    k_hi = np.minimum(boxes.k_hi, boxes.cap // boxes.mu_lo)
    mu_hi = np.minimum(boxes.mu_hi, boxes.cap // boxes.k_lo)
    cut = Boxes(boxes.placement, boxes.mu_lo, mu_hi, boxes.k_lo, k_hi, boxes.cap)
    return cut.take((cut.mu_lo <= cut.mu_hi) & (cut.k_lo <= cut.k_hi))


def split(boxes: Boxes) -> Boxes:
    """Halves of every box, along the range that is wider in proportion, at its geometric middle."""
    by_mu = boxes.mu_hi * boxes.k_lo >= boxes.k_hi * boxes.mu_lo
    low = np.where(by_mu, boxes.mu_lo, boxes.k_lo)
    high = np.where(by_mu, boxes.mu_hi, boxes.k_hi)
    middle = np.clip(np.sqrt(low.astype(float) * high).astype(np.int64), low, high - 1)
    left = Boxes(
        boxes.placement, boxes.mu_lo, np.where(by_mu, middle, boxes.mu_hi), boxes.k_lo,
        np.where(by_mu, boxes.k_hi, middle), boxes.cap,
    )  # fmt: skip
    right = Boxes(
        boxes.placement, np.where(by_mu, middle + 1, boxes.mu_lo), boxes.mu_hi,
        np.where(by_mu, boxes.k_lo, middle + 1), boxes.k_hi, boxes.cap,
    )  # fmt: skip
    return tightened(concatenate([left, right]))

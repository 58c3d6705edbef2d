"""Where in a ring pages lie that differ a little in size."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import gcd


@dataclass(frozen=True)
class Ring:
    """Pages one behind the other, modulo `capacity`; one that begins before that ends behind it, in one piece.

    offsets: where each page of a layer begins, and the end; every layer goes on where the one before ended. nbytes:
    memory of it all.
    """

    offsets: tuple[int, ...]
    capacity: int
    nbytes: int

    def start(self, number: int) -> int:
        """The byte at which a page lies, counted through all layers and passes."""
        layer, index = divmod(number, len(self.offsets) - 1)
        return (layer * self.offsets[-1] + self.offsets[index]) % self.capacity

    @property
    def period(self) -> int:
        """Pages after which places recur: whole layers."""
        return (len(self.offsets) - 1) * (self.capacity // gcd(self.capacity, self.offsets[-1]))


@lru_cache(maxsize=64)
def make_ring(sizes: tuple[int, ...], num_slots: int) -> Ring:
    """A ring in which any `num_slots` consecutive pages are apart; sizes: bytes of a layer's pages.

    Either all pages get the room of the largest, or each its own and the ring the room of a page to end in, whichever
    takes less.
    """
    largest = max(sizes)
    equal = _ring(tuple(i * largest for i in range(len(sizes) + 1)), largest, num_slots)
    packed = _ring((0, *accumulate(sizes)), largest, num_slots)
    return min(equal, packed, key=lambda ring: ring.nbytes)


def _ring(offsets: tuple[int, ...], largest: int, num_slots: int) -> Ring:
    pages, layer = len(offsets) - 1, offsets[-1]
    whole, rest = divmod(num_slots, pages)
    twice = (*offsets, *(layer + offset for offset in offsets[1:]))
    capacity = max(1, whole * layer + max(twice[i + rest] - twice[i] for i in range(pages)))
    step = gcd(capacity, *offsets)  # every page begins at a multiple
    beyond = 0 if not layer or capacity % layer == 0 else largest - step
    return Ring(offsets, capacity, capacity + beyond if layer else 0)

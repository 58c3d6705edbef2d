"""Which bytes of a layer's host memory make a page, and where in the pool a page lies.

Two ways to fill the pool. Double buffer (schedules whose pool holds two layers): a layer's streamed slabs lie one
behind the other in one half, and its pages are equal byte ranges of that. Ring: each page is a group of whole slabs,
so that it can be computed as soon as it is there.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from hrm.schedule.pages import PagePlan
from runtime.memory.expert_layout import Slab, page_borders
from runtime.memory.ring import Ring, make_ring

ALIGNMENT = 256


def aligned(nbytes: int) -> int:
    """Rounded up to where copies and matmul operands may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Region:
    """Slabs of a layer one behind the other, with the byte at which each begins; one more entry for the end."""

    slabs: tuple[Slab, ...]
    starts: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """All of them."""
        return self.starts[-1]


def lay_region(slabs: tuple[Slab, ...], hidden_size: int, itemsize: int) -> Region:
    """Slabs in order, each at an aligned byte."""
    sizes = (aligned(slab.elements(hidden_size) * itemsize) for slab in slabs)
    return Region(slabs, (0, *accumulate(sizes)))


@dataclass(frozen=True)
class PagePiece:
    """Bytes [start, stop) of a layer's region that belong at byte `pool_start` of the pool."""

    layer: int
    start: int
    stop: int
    pool_start: int


@dataclass(frozen=True)
class PlacedSlab:
    """A slab and the byte of the pool at which it lies."""

    slab: Slab
    pool_start: int


@dataclass(frozen=True)
class Paging:
    """Pages of a plan over a region that is the same in every layer. `base` arguments count pages of earlier passes.

    plan: of the pass; its num_slots is the number of pages after which places in the pool recur, so `base` may be
    counted modulo it. borders: double buffer: bytes of the region; ring: numbers of slabs at which each page of a
    layer begins. ring: None for a double buffer, or where no page is streamed.
    """

    plan: PagePlan
    region: Region
    double_buffer: bool
    borders: tuple[int, ...]
    ring: Ring | None

    @cached_property
    def per_layer(self) -> int:
        """Pages of every layer that streams any."""
        return pages_of_a_layer(self.plan)

    @property
    def pool_bytes(self) -> int:
        """GPU memory the plan needs."""
        if self.double_buffer and self.per_layer:
            return 2 * self.region.nbytes
        return self.ring.nbytes if self.ring is not None else 0

    def pieces(self, page: int, base: int) -> tuple[PagePiece, ...]:
        """What to copy for page number `page` of a pass (or, beyond its end, of the next)."""
        layer, index = self.plan.layer_of(page), self._index(page)
        if self.double_buffer:
            start, stop = self.borders[index], self.borders[index + 1]
            return (PagePiece(layer, start, stop, self._home(page, base) + start),)
        first, last, home = self.borders[index], self.borders[index + 1], self._home(page, base)
        starts = self.region.starts
        return tuple(
            PagePiece(layer, starts[i], starts[i + 1], home + starts[i] - starts[first]) for i in range(first, last)
        )

    def slabs(self, pages: range, base: int) -> tuple[PlacedSlab, ...]:
        """Slabs in consecutive pages of a layer (double buffer: in all pages of it)."""
        if self.double_buffer:
            home = self._home(pages.start, base)
            return tuple(
                PlacedSlab(slab, home + start)
                for slab, start in zip(self.region.slabs, self.region.starts, strict=False)
            )
        placed = []
        for page in pages:
            first, last = self.borders[self._index(page)], self.borders[self._index(page) + 1]
            origin = self._home(page, base) - self.region.starts[first]
            placed += [PlacedSlab(self.region.slabs[i], origin + self.region.starts[i]) for i in range(first, last)]
        return tuple(placed)

    def _index(self, page: int) -> int:
        page %= self.plan.per_pass
        return page - self.plan.first[self.plan.layer_of(page)]

    def _home(self, page: int, base: int) -> int:
        """Where the layer's half begins, or the page in the ring."""
        if self.ring is not None:
            return self.ring.start(base + page)
        return self.region.nbytes * ((base + page) // self.per_layer % 2)


def pages_of_a_layer(plan: PagePlan) -> int:
    """Pages of every layer that streams any."""
    return max(plan.per_layer, default=0)


def make_paging(plan: PagePlan, region: Region, double_buffer: bool) -> Paging:
    """Where the pages of a pass lie."""
    pages, starts = pages_of_a_layer(plan), region.starts
    if not pages:
        return Paging(plan, region, double_buffer, (0,), None)
    if double_buffer:
        step = aligned(-(-region.nbytes // pages))
        return Paging(plan, region, True, tuple(min(i * step, region.nbytes) for i in range(pages + 1)), None)
    borders = page_borders(region.slabs, pages)
    ring = make_ring(tuple(starts[b] - starts[a] for a, b in pairwise(borders)), plan.num_slots)
    return Paging(replace(plan, num_slots=ring.period), region, False, borders, ring)

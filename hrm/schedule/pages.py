"""How streamed expert weights are cut into pages, and which slots of the GPU's page pool they pass through."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class PagePlan:
    """Pages numbered through a pass; page g of a pass lies in slot g mod num_slots (one pool, used as a ring).

    per_layer: pages of each layer; 0 where nothing is streamed.
    layer_share: share of each layer's routed experts that is streamed in all its pages together.
    num_slots: page slots on the GPU. ahead: pages that are in place when a pass begins.
    """

    per_layer: tuple[int, ...]
    layer_share: tuple[float, ...]
    num_slots: int
    ahead: int

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Number of each layer's first page; one more entry for the end."""
        return (0, *accumulate(self.per_layer))

    @property
    def per_pass(self) -> int:
        """Pages fetched in a pass."""
        return self.first[-1]

    def layer_of(self, page: int) -> int:
        """The layer that page number `page` of this or the next pass belongs to."""
        return self._layers[page % self.per_pass]

    @cached_property
    def _layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, count in enumerate(self.per_layer) for _ in range(count))

    def of_layer(self, layer: int) -> range:
        """Page numbers of a layer."""
        return range(self.first[layer], self.first[layer + 1])

    def share(self, page: int) -> float:
        """Share of its layer's routed experts that lies in one page."""
        layer = self.layer_of(page)
        return self.layer_share[layer] / self.per_layer[layer]


NO_PAGES = PagePlan((), (), 0, 0)

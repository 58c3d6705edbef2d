"""How a layer's routed experts are cut: by rows of their intermediate dimension, or by expert.

An expert is silu(x G^T) * (x U^T) times D^T: a sum over rows of G and U and columns of D. A share of the experts is
therefore the same share of every expert's rows, whatever the router chooses: resident rows [0, resident), then
streamed rows, then those that the CPU computes. A slab is a contiguous piece of memory that can be computed on its
own: G and U rows [experts, 2 rows, H], then D columns [experts, H, rows].
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise

from runtime.models.config import ModelConfig

GRANULES = (32, 8)  # rows: whole 64 and 16 bytes in 16 bits, on which fast matmuls insist
SMALL_MODEL = 512  # rows: below, shares are met to a row rather than matmuls fed in whole granules
PER_PAGE = 32  # granules of a page at the least: rounding stays small beside it
NO_SHARE = 1e-9


@dataclass(frozen=True)
class Slab:
    """Experts [first_expert, last_expert) and rows [first_row, last_row) of one layer."""

    first_expert: int
    last_expert: int
    first_row: int
    last_row: int

    @property
    def experts(self) -> int:
        """How many experts."""
        return self.last_expert - self.first_expert

    @property
    def rows(self) -> int:
        """Rows of each expert."""
        return self.last_row - self.first_row

    def holds_any(self, experts: frozenset[int]) -> bool:
        """Whether some of `experts` lie in it."""
        return not experts.isdisjoint(range(self.first_expert, self.last_expert))

    def elements(self, hidden_size: int) -> int:
        """Elements of all three matrices."""
        return 3 * self.experts * self.rows * hidden_size


@dataclass(frozen=True)
class ExpertLayout:
    """Slabs of every MoE layer: `resident` on the GPU, `streamed` and `on_cpu` in CPU memory, in this order."""

    resident: Slab
    streamed: tuple[Slab, ...]
    on_cpu: tuple[Slab, ...]

    @property
    def host(self) -> tuple[Slab, ...]:
        """Slabs in CPU memory, as they lie there."""
        return (*self.streamed, *self.on_cpu)


def row_granule(rows: int, page_rows: float) -> int:
    """Rows that are moved together, of experts of `rows` rows whose pages have `page_rows`."""
    if rows < SMALL_MODEL or rows % GRANULES[-1]:
        return 1
    return next((g for g in GRANULES if g * PER_PAGE <= page_rows and rows % g == 0), GRANULES[-1])


def by_rows(config: ModelConfig, resident: float, on_gpu: float, pages: int, prefill_pages: int) -> ExpertLayout:
    """Slabs of all experts, cut wherever a page begins.

    resident, on_gpu: shares of the experts that lie, and are computed, on the GPU; rounded down to whole granules, so
    that what is streamed exceeds its share by less than one. Where they are equal nothing is streamed: such a policy
    has no pages. pages: of the streamed rows; prefill_pages: of all rows that are not resident, in passes that only
    prefill.
    """
    rows, streams = config.moe_intermediate_size, ((on_gpu - resident, pages), (1 - resident, prefill_pages))
    granule = row_granule(rows, min((s * rows / max(n, 1) for s, n in streams if s > NO_SHARE), default=rows))
    kept = _whole(resident, rows, granule)
    computed = max(_whole(on_gpu, rows, granule), kept) if on_gpu > resident + NO_SHARE else kept
    borders = {*_cuts(kept, computed, pages, granule), *_cuts(kept, rows, prefill_pages, granule), computed}
    streamed = sorted(border for border in borders if border <= computed)
    on_cpu = sorted(border for border in borders if border >= computed)
    if len(streamed) == 1:
        streamed *= 2  # an empty slab says where it would be
    return ExpertLayout(
        Slab(0, config.num_experts, 0, kept),
        tuple(Slab(0, config.num_experts, a, b) for a, b in pairwise(streamed)),
        tuple(Slab(0, config.num_experts, a, b) for a, b in pairwise(on_cpu)),
    )


def _whole(share: float, rows: int, granule: int) -> int:
    return min(int(share * rows / granule + 1e-6) * granule, rows)


def _cuts(first: int, last: int, parts: int, granule: int) -> list[int]:
    """Borders of `parts` parts that differ by at most a granule."""
    units = (last - first) // granule
    return [first + granule * (units * i // max(parts, 1)) for i in range(max(parts, 1) + 1)]


def page_borders(slabs: tuple[Slab, ...], pages: int) -> tuple[int, ...]:
    """Numbers of slabs at which `pages` pages of nearly equal size begin, and the end: no slab is cut."""
    ends = tuple(accumulate((slab.experts * slab.rows for slab in slabs), initial=0))
    inner = (bisect_right(ends, ends[-1] * i // pages) - 1 for i in range(1, pages))
    return (0, *inner, len(slabs))


def by_expert(config: ModelConfig, resident: float, on_gpu: float) -> ExpertLayout:
    """One streamed slab per expert, so that only those that a pass touches need be copied."""
    whole = by_rows(config, resident, on_gpu, 1, 1)
    first, last = whole.resident.last_row, whole.streamed[0].last_row
    streamed = tuple(Slab(e, e + 1, first, last) for e in range(config.num_experts))
    return ExpertLayout(whole.resident, streamed, whole.on_cpu)

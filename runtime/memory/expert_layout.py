"""How a layer's routed experts are cut: by rows of their intermediate dimension, or by expert.

An expert is silu(x G^T) * (x U^T) times D^T: a sum over rows of G and U and columns of D. A share of the experts is
therefore the same share of every expert's rows, whatever the router chooses: resident rows [0, resident), then
streamed rows, then those that the CPU computes. A slab is a contiguous piece of memory that can be computed on its
own: G and U rows [experts, 2 rows, H], then D columns [experts, H, rows].
"""

from dataclasses import dataclass
from itertools import pairwise

from runtime.models.config import ModelConfig

GRANULE = 32  # rows: matmul operands stay aligned, and narrow slabs efficient
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


def row_granule(config: ModelConfig) -> int:
    """Rows that are moved together: few enough that shares of small models are still met."""
    rows = config.moe_intermediate_size
    return GRANULE if rows % GRANULE == 0 and rows >= 16 * GRANULE else 1


def by_rows(config: ModelConfig, resident: float, on_gpu: float, pages: int, cpu_pages: int) -> ExpertLayout:
    """`pages` streamed slabs and, where on_gpu < 1, `cpu_pages` for the CPU, each of all experts.

    resident, on_gpu: shares of the experts that lie, and are computed, on the GPU. Rounded to whole granules, the
    resident share down. Where they are equal nothing is streamed: such a policy has no pages.
    """
    granule, rows, experts = row_granule(config), config.moe_intermediate_size, config.num_experts
    kept = min(int(resident * rows / granule + 1e-6) * granule, rows)
    computed = min(max(round(on_gpu * rows / granule) * granule, kept), rows) if on_gpu > resident + NO_SHARE else kept
    return ExpertLayout(
        Slab(0, experts, 0, kept),
        _cut(experts, kept, computed, max(pages, 1), granule),
        _cut(experts, computed, rows, max(cpu_pages, 1), granule) if on_gpu < 1 else (),
    )


def _cut(experts: int, first: int, last: int, parts: int, granule: int) -> tuple[Slab, ...]:
    """Rows in `parts` slabs that differ by at most a granule."""
    units = -(-(last - first) // granule)
    borders = [min(last, first + granule * (units * i // parts)) for i in range(parts + 1)]
    return tuple(Slab(0, experts, a, b) for a, b in pairwise(borders))


def by_expert(config: ModelConfig, resident: float, on_gpu: float) -> ExpertLayout:
    """One streamed slab per expert, so that only those that a pass touches need be copied."""
    whole = by_rows(config, resident, on_gpu, 1, 1)
    first, last = whole.resident.last_row, whole.streamed[0].last_row
    streamed = tuple(Slab(e, e + 1, first, last) for e in range(config.num_experts))
    return ExpertLayout(whole.resident, streamed, whole.on_cpu)

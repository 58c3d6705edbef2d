"""The discrete choices of a schedule: which classes of policy it can run, and which resources it overlaps."""

from dataclasses import dataclass
from typing import Literal

from hrm.spec.policy import AttentionPlace, ExpertCacheMode, FfnBatching

Overlap = Literal["full", "phases", "cpu_serial", "on_demand"]


@dataclass(frozen=True)
class Placement:
    """One class of policies that share a linear model: everything that is chosen but is not a number.

    attention: "cpu" (A_g = r_c = 0), "resident" (A_g = r_c = 1), "streamed" (A_g = 1, KV copied in per micro-batch),
        "hybrid" (A_g = r_c: the GPU attends what it holds, the CPU the rest), "split" (any r_c <= A_g).
    experts_on_cpu: whether F_g may be below 1.
    overlap: "full" - every resource is its own queue (CGOPipe); "phases" - a layer's attention phase, then its expert
        phase over the whole batch, copies running across both (MoE-Gen); "cpu_serial" - CPU work is not overlapped
        with GPU work (FlexGen with CPU attention, S3); "on_demand" - experts are fetched after routing, so copies
        are not overlapped with compute.
    pool_layers: layers' worth of streamed expert weights that the page pool holds; None lets the search choose the
        size of a ring that prefetches across layers. 0: whole experts are copied into slots of the resident share.
    paged: a layer's weights are copied in pages between the small copies, not in one piece before them.
    stepwise: queues are synchronised after every half layer of every micro-batch (FlexGen). As with `paged`, busy times
        are the same; the simulator shows the difference.
    prefill_chunk_tokens: tokens prefilled at a time; None leaves it to the machine (see Rates.prefill_chunk_tokens).
    expert_cache: what the expert cache holds and how it is filled (see Policy); "predictive" overlaps copies with
        compute although its overlap is "on_demand".
    """

    schedule: str
    attention: AttentionPlace
    experts_on_cpu: bool
    ffn: FfnBatching
    mixed_prefill: bool
    overlap: Overlap
    pool_layers: int | None
    single_micro_batch: bool = False
    paged: bool = True
    stepwise: bool = False
    prefill_chunk_tokens: int | None = None
    expert_cache: ExpertCacheMode = "rows"

    @property
    def attends_on_cpu(self) -> bool:
        """Whether the CPU may do a share of decode attention."""
        return self.attention in ("cpu", "hybrid", "split")

    @property
    def streams_kv(self) -> bool:
        """Whether KV cache may cross to the GPU for attention there."""
        return self.attention in ("streamed", "split")

    @property
    def spills_hidden_states(self) -> bool:
        """Whether prefill leaves hidden states on the host between layers; a single micro-batch's stay on the GPU."""
        return not self.single_micro_batch

    @property
    def min_micro_batches(self) -> int:
        """Fewest micro-batches with which CPU and GPU work of a layer can overlap at all.

        A single micro-batch goes through QKV, CPU attention and the rest in turn; with two, one is on each processor.
        """
        host_work = self.attends_on_cpu or self.experts_on_cpu
        return 2 if host_work and self.overlap in ("full", "phases") else 1

    @property
    def max_micro_batches(self) -> int | None:
        """Most micro-batches; None where only the batch size limits them."""
        return 1 if self.single_micro_batch else None

"""One step of a schedule: what is done, for which layer and micro-batch, on which queue, and what it waits for."""

from dataclasses import dataclass
from enum import StrEnum


class Resource(StrEnum):
    """An in-order queue: its tasks run one at a time, in the order of the graph.

    HOST is the copy thread that stages pageable memory into page-locked memory; ZERO_COPY reads of page-locked memory
    by a GPU kernel, which share the HTOD wire with the copy engine but do not queue behind it.
    """

    GPU = "GPU"
    CPU = "CPU"
    HTOD = "HTOD"
    DTOH = "DTOH"
    DISK = "DISK"
    LINK = "LINK"
    HOST = "HOST"
    ZERO_COPY = "ZERO_COPY"


class Kind(StrEnum):
    """What a task does; the runtime has one function per kind, the simulator one duration."""

    EMBEDDING_LOAD = "embedding_load"  # embedding rows of a micro-batch, host to GPU
    HIDDEN_LOAD = "hidden_load"  # hidden states of prefill, or results of experts on the CPU, host to GPU
    HIDDEN_STORE = "hidden_store"  # hidden states to the host
    PRE_ATTENTION = "pre_attention"  # norm and QKV projection
    QKV_OFFLOAD = "qkv_offload"  # Q and the new K, V to the CPU
    CPU_ATTENTION = "cpu_attention"  # decode attention on the CPU
    ATTENTION_LOAD = "attention_load"  # the CPU's attention result, host to GPU
    KV_FETCH = "kv_fetch"  # cached K, V of a micro-batch, host to GPU
    KV_STORE = "kv_store"  # new K, V to the host
    GPU_ATTENTION = "gpu_attention"  # decode attention, and causal attention of prefill
    POST_ATTENTION = "post_attention"  # output projection, norm, router, shared experts and dense FFN
    EXPERT_FFN = "expert_ffn"  # routed experts on the GPU
    CPU_EXPERT_FFN = "cpu_expert_ffn"  # routed experts on the CPU
    WEIGHT_READ = "weight_read"  # expert page, disk to CPU memory
    WEIGHT_STAGE = "weight_stage"  # page, pageable to page-locked CPU memory
    KV_STAGE = "kv_stage"  # cached K, V, pageable to page-locked CPU memory
    WEIGHT_FETCH = "weight_fetch"  # expert page, host to its slot on the GPU
    EXPERT_PREFETCH = "expert_prefetch"  # predicted experts, host to their slots, ahead of the layer's router
    EXPERT_CORRECTION = "expert_correction"  # experts that the router chose and no slot holds, host to their slots
    DENSE_FETCH = "dense_fetch"  # a layer's streamed weights but the experts, host to GPU
    HEAD_FETCH = "head_fetch"  # the streamed share of the LM head, host to GPU
    ALL_REDUCE = "all_reduce"  # sum of partial hidden states over the GPUs
    LM_HEAD = "lm_head"  # last norm, LM head and sampling


@dataclass(frozen=True, slots=True)
class Work:
    """How much of a layer and of a micro-batch a task takes on.

    sequences: decoding sequences it handles, one token each. prompt_tokens: prompt tokens it handles. share: of the
    layer's weights of this kind; a task on experts takes that share of them and of their tokens. pages: numbers of
    the first page and of the one past the last that it writes (fetch) or reads (expert FFN). Pages are
        numbered through the pass; those beyond its last page belong to the next pass.
    ahead: it works for the next pass (a fetch whose pages no expert of this pass reads). experts: share of all of the
    layer's experts whose weights a task on the CPU reads; 0: that share of those that its tokens are expected to touch.
    """

    sequences: int = 0
    prompt_tokens: int = 0
    share: float = 1.0
    pages: tuple[int, int] = (0, 0)
    ahead: bool = False
    experts: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that go through every weight of the task."""
        return self.sequences + self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Task:
    """One entry of a queue. `after` are indices, in the same graph, of tasks that must end before it starts.

    micro_batch is None where it serves all of them (weights, experts over the whole batch).
    """

    kind: Kind
    layer: int
    micro_batch: int | None
    resource: Resource
    work: Work
    after: tuple[int, ...]

    def __repr__(self) -> str:
        where = f"L{self.layer}" if self.micro_batch is None else f"L{self.layer} M{self.micro_batch}"
        return f"<{self.resource} {self.kind} {where}{_pages(self.work)} after {list(self.after)}>"


def _pages(work: Work) -> str:
    first, end = work.pages
    return f" pages {first}:{end}" if end > first else ""

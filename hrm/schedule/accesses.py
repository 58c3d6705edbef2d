"""Which buffers each task of a graph reads and writes."""

from collections.abc import Callable

from hrm.schedule import activation_accesses, compute_accesses, slot_accesses, weight_accesses
from hrm.schedule.access_table import AccessTable
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Task


class Accesses(AccessTable):
    """What every task of a graph reads and writes."""

    def __init__(self, graph: TaskGraph) -> None:
        super().__init__(graph)
        for i, task in enumerate(graph.tasks):
            _ACCESSES[task.kind](self, i, task)
            self.done(task)


_ACCESSES: dict[Kind, Callable[[AccessTable, int, Task], None]] = {
    Kind.EMBEDDING_LOAD: activation_accesses.embedding_load,
    Kind.HIDDEN_LOAD: activation_accesses.hidden_load,
    Kind.HIDDEN_STORE: activation_accesses.hidden_store,
    Kind.PRE_ATTENTION: compute_accesses.pre_attention,
    Kind.QKV_OFFLOAD: activation_accesses.qkv_offload,
    Kind.CPU_ATTENTION: compute_accesses.cpu_attention,
    Kind.ATTENTION_LOAD: activation_accesses.attention_load,
    Kind.KV_FETCH: activation_accesses.kv_fetch,
    Kind.KV_STORE: activation_accesses.kv_store,
    Kind.GPU_ATTENTION: compute_accesses.gpu_attention,
    Kind.POST_ATTENTION: compute_accesses.post_attention,
    Kind.EXPERT_FFN: compute_accesses.expert_ffn,
    Kind.CPU_EXPERT_FFN: compute_accesses.cpu_expert_ffn,
    Kind.WEIGHT_READ: weight_accesses.weight_read,
    Kind.WEIGHT_STAGE: weight_accesses.weight_stage,
    Kind.KV_STAGE: activation_accesses.kv_stage,
    Kind.WEIGHT_FETCH: weight_accesses.weight_fetch,
    Kind.EXPERT_PREFETCH: slot_accesses.expert_prefetch,
    Kind.EXPERT_CORRECTION: slot_accesses.expert_correction,
    Kind.DENSE_FETCH: weight_accesses.dense_fetch,
    Kind.HEAD_FETCH: weight_accesses.dense_fetch,
    Kind.ALL_REDUCE: compute_accesses.all_reduce,
    Kind.LM_HEAD: compute_accesses.lm_head,
}

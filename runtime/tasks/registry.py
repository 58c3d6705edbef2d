"""Which function does which kind of task."""

from collections.abc import Callable

from hrm.schedule.task import Kind, Task
from runtime.tasks import attention, experts, hidden, kv, weights
from runtime.tasks.state import PassState

TaskFunction = Callable[[PassState, int, Task], None]

FUNCTIONS: dict[Kind, TaskFunction] = {
    Kind.EMBEDDING_LOAD: hidden.embedding_load,
    Kind.HIDDEN_LOAD: hidden.hidden_load,
    Kind.HIDDEN_STORE: hidden.hidden_store,
    Kind.PRE_ATTENTION: attention.pre_attention,
    Kind.QKV_OFFLOAD: attention.qkv_offload,
    Kind.CPU_ATTENTION: attention.cpu_attention,
    Kind.ATTENTION_LOAD: attention.attention_load,
    Kind.KV_FETCH: kv.kv_fetch,
    Kind.KV_STORE: kv.kv_store,
    Kind.KV_STAGE: kv.kv_stage,
    Kind.GPU_ATTENTION: attention.gpu_attention,
    Kind.POST_ATTENTION: attention.post_attention,
    Kind.EXPERT_FFN: experts.expert_ffn,
    Kind.CPU_EXPERT_FFN: experts.cpu_expert_ffn,
    Kind.WEIGHT_FETCH: weights.weight_fetch,
    Kind.WEIGHT_STAGE: weights.weight_stage,
    Kind.DENSE_FETCH: weights.dense_fetch,
    Kind.HEAD_FETCH: weights.head_fetch,
    Kind.LM_HEAD: hidden.head,
}

"""Which function does which kind of task."""

from collections.abc import Callable

from hrm.schedule.task import Kind, Task
from runtime.tasks import attention, cached_experts, experts, hidden, kv, left_experts, weights
from runtime.tasks.state import PassState

TaskFunction = Callable[[PassState, int, Task], None]


def _expert_ffn(state: PassState, index: int, task: Task) -> None:
    """Experts in slots, or in slabs."""
    run = experts.expert_ffn if state.memory.slots is None else cached_experts.cached_expert_ffn
    run(state, index, task)


def _cpu_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """What the cache leaves to the CPU, or the CPU's rows of all experts."""
    run = experts.cpu_expert_ffn if state.memory.slots is None else left_experts.left_expert_ffn
    run(state, index, task)


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
    Kind.EXPERT_FFN: _expert_ffn,
    Kind.EXPERT_PREFETCH: cached_experts.expert_prefetch,
    Kind.EXPERT_CORRECTION: cached_experts.expert_correction,
    Kind.CPU_EXPERT_FFN: _cpu_expert_ffn,
    Kind.WEIGHT_FETCH: weights.weight_fetch,
    Kind.WEIGHT_STAGE: weights.weight_stage,
    Kind.DENSE_FETCH: weights.dense_fetch,
    Kind.HEAD_FETCH: weights.head_fetch,
    Kind.LM_HEAD: hidden.head,
}

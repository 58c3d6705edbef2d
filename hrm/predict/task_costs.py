"""What a task of each kind costs in a layer: roofline time of its operators, or bytes over a link and its latency.

Norms, rotary embedding, softmax and sampling are left out, as in the closed form.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from hrm.predict.layer_rates import Cost, LayerRates
from hrm.predict.rates import Rates
from hrm.roofline.linear import linear_operator
from hrm.schedule.slice import MicroBatch
from hrm.schedule.task import Kind, Task

COPY_TRAFFIC = 3  # bytes of DRAM traffic per byte copied with ordinary stores, which allocate the line they write
COPY_LINKS = {"HTOD": "htod", "ZERO_COPY": "htod", "DTOH": "dtoh"}

_CostFunction = Callable[[Rates, LayerRates, Task, MicroBatch], Cost]


def _copy(rates: Rates, task: Task, moved: float) -> Cost:
    """A transfer over a host link."""
    link, machine = COPY_LINKS[task.resource], rates.machine
    seconds = moved / machine.link_bytes_per_s(link) + machine.link_latency(link)
    return Cost(seconds, 0.0, moved, moved)


def _hidden(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.tokens * rates.sizes.hidden_bytes)


def _pre_attention(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    cost = layer.linears(post=False, tokens=float(task.work.tokens))
    if task.layer > 0:
        return cost
    rows = 2 * task.work.tokens * rates.sizes.hidden_bytes  # the embedding's rows, written and read
    return Cost(cost.seconds + float(rates.machine.memory_seconds("gpu", "linear", rows)), cost.flops, cost.bytes)


def _post_attention(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.linears(post=True, tokens=float(task.work.tokens))


def _qkv_offload(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.sequences * layer.sizes.attention_input_bytes)


def _cpu_attention(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.decode_attention("cpu", float(task.work.sequences), mb.context_len)


def _attention_load(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.sequences * layer.sizes.attention_output_bytes)


def _kv_fetch(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    cached = layer.sizes.kv_bytes_per_sequence(mb.context_len) * rates.kv_replication
    return _copy(rates, task, task.work.sequences * task.work.share * cached)


def _kv_store(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.tokens * task.work.share * layer.sizes.kv_bytes_per_token)


def _gpu_attention(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    if mb.is_prefill:
        return layer.prefill_attention(mb.prompts, mb.prompt_len, mb.prompt_len_sq)
    return layer.decode_attention("gpu", float(task.work.sequences), mb.context_len)


def _expert_ffn(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.experts("gpu", float(task.work.tokens), task.work.share)


def _cpu_expert_ffn(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    work = task.work
    if work.experts:
        return layer.listed_experts("cpu", float(work.tokens), work.share, work.experts)
    return layer.experts("cpu", float(work.tokens), work.share)


def _weight_read(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    moved = task.work.share * layer.sizes.expert_bytes
    machine = rates.machine
    return Cost(moved / machine.link_bytes_per_s("disk_read") + machine.link_latency("disk_read"), 0.0, moved, moved)


def _weight_stage(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _host_copy(rates, task.work.share * layer.sizes.expert_bytes)


def _host_copy(rates: Rates, size: float) -> Cost:
    """A copy within CPU memory at its stated bandwidth: read, line fetched for writing, written back.

    Leaves out copies with streaming stores, which fetch nothing, and threads too few to reach the bandwidth.
    """
    moved = COPY_TRAFFIC * size
    return Cost(moved / rates.machine.cpu_memory_bytes_per_s, 0.0, moved, moved)


def _kv_stage(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _host_copy(rates, task.work.sequences * task.work.share * layer.sizes.kv_bytes_per_sequence(mb.context_len))


def _weight_fetch(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.share * layer.sizes.expert_bytes)


def _expert_copies(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """Whole experts, one copy each: an expected number of them, which may be a fraction."""
    moved = task.work.share * layer.sizes.expert_bytes
    link, machine = COPY_LINKS[task.resource], rates.machine
    waits = task.work.share * layer.layer.ffn.num_experts * machine.link_latency(link)
    return Cost(moved / machine.link_bytes_per_s(link) + waits, 0.0, moved, moved)


def _expert_correction(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """The host waits for the routers' choice before it can issue copies, however few: a crossing, its decision, and a
    task's launch on a GPU that has run dry meanwhile. The wire is free until then.
    """
    copies, machine = _expert_copies(rates, layer, task, mb), rates.machine
    gate = machine.link_latency("dtoh") + machine.gate_overhead() + machine.task_overhead("gpu")
    return replace(copies, seconds=copies.seconds + gate, overhead=gate)


def _dense_fetch(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.share * layer.dense_bytes)


def _head_fetch(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _copy(rates, task, task.work.share * _head_bytes(rates))


def _head_bytes(rates: Rates) -> float:
    """What is left of the weights that are not paged once every layer's are taken away."""
    layers = sum(count * LayerRates(rates, layer).dense_bytes for layer, count in rates.model.layer_groups)
    return max(0.0, rates.sizes.dense_bytes - layers)


def _all_reduce(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """A ring all-reduce of the hidden states: 2 (p - 1) / p of the bytes over each link."""
    machine = rates.machine
    devices = machine.tensor_parallel_size
    moved = task.work.tokens * rates.sizes.hidden_bytes * 2 * (devices - 1) / devices
    return Cost(moved / machine.link_bytes_per_s("gpu_to_gpu") + machine.link_latency("gpu_to_gpu"), 0.0, moved)


def _lm_head(rates: Rates, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """One row of logits per decoding sequence or finished prompt."""
    rows = mb.sequences + mb.prompts
    model, machine = rates.model, rates.machine
    op = linear_operator("lm_head", model.hidden_size, model.vocab_size, rows, machine.precision)
    return Cost(float(machine.seconds("gpu", op, float(task.work.tokens))), float(op.flops), float(op.bytes))


COSTS: Mapping[Kind, _CostFunction] = {
    Kind.EMBEDDING_LOAD: _hidden,
    Kind.HIDDEN_LOAD: _hidden,
    Kind.HIDDEN_STORE: _hidden,
    Kind.PRE_ATTENTION: _pre_attention,
    Kind.QKV_OFFLOAD: _qkv_offload,
    Kind.CPU_ATTENTION: _cpu_attention,
    Kind.ATTENTION_LOAD: _attention_load,
    Kind.KV_FETCH: _kv_fetch,
    Kind.KV_STORE: _kv_store,
    Kind.GPU_ATTENTION: _gpu_attention,
    Kind.POST_ATTENTION: _post_attention,
    Kind.EXPERT_FFN: _expert_ffn,
    Kind.CPU_EXPERT_FFN: _cpu_expert_ffn,
    Kind.WEIGHT_READ: _weight_read,
    Kind.WEIGHT_STAGE: _weight_stage,
    Kind.KV_STAGE: _kv_stage,
    Kind.WEIGHT_FETCH: _weight_fetch,
    Kind.EXPERT_PREFETCH: _expert_copies,
    Kind.EXPERT_CORRECTION: _expert_correction,
    Kind.DENSE_FETCH: _dense_fetch,
    Kind.HEAD_FETCH: _head_fetch,
    Kind.ALL_REDUCE: _all_reduce,
    Kind.LM_HEAD: _lm_head,
}

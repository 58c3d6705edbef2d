"""What every task of a graph costs on one machine."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hrm.predict.layer_rates import Cost, LayerRates
from hrm.predict.rates import Rates
from hrm.roofline.linear import linear_operator
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import MicroBatch
from hrm.schedule.task import Kind, Resource, Task

COPY_TRAFFIC = 3  # bytes of DRAM traffic per byte copied with ordinary stores, which allocate the line they write
DEPEND_ON_CONTEXT = (Kind.CPU_ATTENTION, Kind.GPU_ATTENTION, Kind.KV_FETCH, Kind.KV_STAGE, Kind.LM_HEAD)
PAGE_OVERHEAD = 1 / 4  # of a task's: two grouped matmuls, activation and add, against some 20 launches of a whole task
COPY_LINKS = {"HTOD": "htod", "ZERO_COPY": "htod", "DTOH": "dtoh"}


@dataclass
class TaskCosts:
    """Costs of tasks of one (model, machine), computed once per kind of layer and amount of work.

    Norms, rotary embedding, softmax and sampling are left out, as in the closed form; each copy costs the link's
    latency beside its bytes. Where the profile states the overhead of a task, every task takes that much more: its
    matrix products and attention are measured alone, and beside them stand the kernels that are left out, or threads
    that wake first. Experts on the GPU are measured with all that belongs to them, and only take no less.
    """

    rates: Rates
    _cache: dict[tuple[object, ...], Cost] = field(default_factory=dict)
    _layers: list[LayerRates] = field(default_factory=list)

    def __post_init__(self) -> None:
        distinct = {layer: LayerRates(self.rates, layer) for layer, _ in self.rates.model.layer_groups}
        self._layers = [distinct[layer] for layer in self.rates.model.layers]

    def of_task(self, task: Task, graph: TaskGraph) -> Cost:
        """The cost of one task."""
        batches = graph.slice.micro_batches
        mb = batches[task.micro_batch] if task.micro_batch is not None else _NONE
        layer, work = self._layers[task.layer], task.work
        first = task.layer == 0 and task.kind == Kind.PRE_ATTENTION
        details = mb if task.kind in DEPEND_ON_CONTEXT else None
        size = (work.sequences, work.prompt_tokens, work.share, work.experts, _num_pages(task))
        key = (task.kind, task.resource, id(layer), first, size, details)
        if key not in self._cache:
            self._cache[key] = self._with_overhead(task, _COSTS[task.kind](self, layer, task, mb))
        return self._cache[key]

    def _with_overhead(self, task: Task, cost: Cost) -> Cost:
        machine = self.rates.machine
        if task.resource == Resource.GPU:
            overhead = machine.task_overhead("gpu")
            if task.kind == Kind.EXPERT_FFN and task.work.share == 0:  # no expert to launch
                return cost
            if task.kind == Kind.EXPERT_FFN:  # measured whole, launches and all
                least = overhead * (1 + PAGE_OVERHEAD * max(0, _num_pages(task) - 1))
                return replace(cost, seconds=max(cost.seconds, least))
            return replace(cost, seconds=cost.seconds + overhead)
        if task.resource == Resource.CPU:
            overhead = machine.task_overhead("cpu")
            return replace(cost, seconds=cost.seconds + overhead, overhead=overhead)
        return cost

    def copy(self, task: Task, moved: float) -> Cost:
        """A transfer over a host link."""
        link = COPY_LINKS[task.resource]
        machine = self.rates.machine
        seconds = moved / machine.link_bytes_per_s(link) + machine.link_latency(link)
        return Cost(seconds, 0.0, moved, moved)


def _num_pages(task: Task) -> int:
    first, end = task.work.pages
    return end - first


_NONE = MicroBatch()
_CostFunction = Callable[[TaskCosts, LayerRates, Task, MicroBatch], Cost]


def _hidden(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.tokens * costs.rates.sizes.hidden_bytes)


def _pre_attention(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    cost = layer.linears(post=False, tokens=float(task.work.tokens))
    if task.layer > 0:
        return cost
    rows = 2 * task.work.tokens * costs.rates.sizes.hidden_bytes  # the embedding's rows, written and read
    return Cost(cost.seconds + float(costs.rates.machine.memory_seconds("gpu", "linear", rows)), cost.flops, cost.bytes)


def _post_attention(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.linears(post=True, tokens=float(task.work.tokens))


def _qkv_offload(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.sequences * layer.sizes.attention_input_bytes)


def _cpu_attention(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.decode_attention("cpu", float(task.work.sequences), mb.context_len)


def _attention_load(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.sequences * layer.sizes.attention_output_bytes)


def _kv_fetch(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    cached = layer.sizes.kv_bytes_per_sequence(mb.context_len) * costs.rates.kv_replication
    return costs.copy(task, task.work.sequences * task.work.share * cached)


def _kv_store(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.tokens * task.work.share * layer.sizes.kv_bytes_per_token)


def _gpu_attention(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    if mb.is_prefill:
        return layer.prefill_attention(mb.prompts, mb.prompt_len, mb.prompt_len_sq)
    return layer.decode_attention("gpu", float(task.work.sequences), mb.context_len)


def _expert_ffn(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return layer.experts("gpu", float(task.work.tokens), task.work.share)


def _cpu_expert_ffn(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    work = task.work
    if work.experts:
        return layer.listed_experts("cpu", float(work.tokens), work.share, work.experts)
    return layer.experts("cpu", float(work.tokens), work.share)


def _weight_read(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    moved = task.work.share * layer.sizes.expert_bytes
    machine = costs.rates.machine
    return Cost(moved / machine.link_bytes_per_s("disk_read") + machine.link_latency("disk_read"), 0.0, moved, moved)


def _weight_stage(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _host_copy(costs, task.work.share * layer.sizes.expert_bytes)


def _host_copy(costs: TaskCosts, size: float) -> Cost:
    """A copy within CPU memory at its stated bandwidth: read, line fetched for writing, written back.

    Leaves out copies with streaming stores, which fetch nothing, and threads too few to reach the bandwidth.
    """
    moved = COPY_TRAFFIC * size
    return Cost(moved / costs.rates.machine.cpu_memory_bytes_per_s, 0.0, moved, moved)


def _kv_stage(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return _host_copy(costs, task.work.sequences * task.work.share * layer.sizes.kv_bytes_per_sequence(mb.context_len))


def _weight_fetch(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.share * layer.sizes.expert_bytes)


def _expert_copies(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """Whole experts, one copy each: an expected number of them, which may be a fraction."""
    moved = task.work.share * layer.sizes.expert_bytes
    link, machine = COPY_LINKS[task.resource], costs.rates.machine
    waits = task.work.share * layer.layer.ffn.num_experts * machine.link_latency(link)
    return Cost(moved / machine.link_bytes_per_s(link) + waits, 0.0, moved, moved)


def _expert_correction(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """The host waits for the routers' choice before it can issue copies, however few: a crossing, and a task's launch
    on a GPU that has run dry meanwhile. The wire is free until then.
    """
    copies, machine = _expert_copies(costs, layer, task, mb), costs.rates.machine
    gate = machine.link_latency("dtoh") + machine.task_overhead("gpu")
    return replace(copies, seconds=copies.seconds + gate, overhead=gate)


def _dense_fetch(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.share * layer.dense_bytes)


def _head_fetch(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    return costs.copy(task, task.work.share * _head_bytes(costs))


def _head_bytes(costs: TaskCosts) -> float:
    """What is left of the weights that are not paged once every layer's are taken away."""
    layers = sum(layer.dense_bytes for layer in costs._layers)
    return max(0.0, costs.rates.sizes.dense_bytes - layers)


def _all_reduce(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """A ring all-reduce of the hidden states: 2 (p - 1) / p of the bytes over each link."""
    machine = costs.rates.machine
    devices = machine.tensor_parallel_size
    moved = task.work.tokens * costs.rates.sizes.hidden_bytes * 2 * (devices - 1) / devices
    return Cost(moved / machine.link_bytes_per_s("gpu_to_gpu") + machine.link_latency("gpu_to_gpu"), 0.0, moved)


def _lm_head(costs: TaskCosts, layer: LayerRates, task: Task, mb: MicroBatch) -> Cost:
    """One row of logits per decoding sequence or finished prompt."""
    rows = mb.sequences + mb.prompts
    model, machine = costs.rates.model, costs.rates.machine
    op = linear_operator("lm_head", model.hidden_size, model.vocab_size, rows, machine.precision)
    return Cost(float(machine.seconds("gpu", op, float(task.work.tokens))), float(op.flops), float(op.bytes))


_COSTS: dict[Kind, _CostFunction] = {
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

"""What every task of a graph costs on one machine, launches included."""

from dataclasses import dataclass, field, replace

from hrm.predict.layer_rates import Cost, LayerRates
from hrm.predict.rates import Rates
from hrm.predict.task_costs import COSTS
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import MicroBatch
from hrm.schedule.task import Kind, Resource, Task

DEPEND_ON_CONTEXT = (Kind.CPU_ATTENTION, Kind.GPU_ATTENTION, Kind.KV_FETCH, Kind.KV_STAGE, Kind.LM_HEAD)
STEPS = (Kind.PRE_ATTENTION, Kind.GPU_ATTENTION, Kind.POST_ATTENTION)
PAGE_OVERHEAD = 1 / 4  # of a task's: two grouped matmuls, activation and add, against some 20 launches of a whole task
_NONE = MicroBatch()


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
        replayed = task.kind in STEPS and graph.repeats_steps
        size = (work.sequences, work.prompt_tokens, work.share, work.experts, _num_pages(task))
        key = (task.kind, task.resource, id(layer), first, size, details, replayed)
        if key not in self._cache:
            self._cache[key] = self._with_overhead(task, COSTS[task.kind](self.rates, layer, task, mb), replayed)
        return self._cache[key]

    def _with_overhead(self, task: Task, cost: Cost, replayed: bool) -> Cost:
        """replayed: its launches are one graph."""
        machine = self.rates.machine
        if task.resource == Resource.GPU:
            overhead = machine.graph_overhead() if replayed else machine.task_overhead("gpu")
            if task.kind == Kind.EXPERT_FFN and task.work.share == 0:  # no expert to launch
                return cost
            if task.kind == Kind.EXPERT_FFN:  # measured whole, launches and all
                least = overhead * (1 + PAGE_OVERHEAD * max(0, _num_pages(task) - 1))
                return replace(cost, seconds=max(cost.seconds, least))
            return replace(cost, seconds=cost.seconds + overhead)
        if task.resource == Resource.CPU:
            overhead = machine.task_overhead("cpu")
            if task.kind == Kind.CPU_EXPERT_FFN and task.work.experts:  # which they are, the cache decides at the gate
                overhead += machine.gate_overhead()
            return replace(cost, seconds=cost.seconds + overhead, overhead=overhead)
        return cost


def _num_pages(task: Task) -> int:
    first, end = task.work.pages
    return end - first

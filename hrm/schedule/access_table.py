"""What a graph does where, as far as the accesses of its tasks depend on it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from hrm.schedule.buffers import DENSE, DENSE_BUFFERS, HIDDEN, PAGE, PARTIAL, RELOADED, WHOLE, BufferTable
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Task

Place = tuple[int, int | None]
"""Layer and micro-batch; None for all of them."""


class AccessTable(BufferTable):
    """The buffers of a graph, to be filled task by task in the graph's order."""

    def __init__(self, graph: TaskGraph) -> None:
        super().__init__()
        self.graph = graph
        self._seen: Counter[tuple[Kind, Place]] = Counter()
        self._count = Counter((t.kind, (t.layer, t.micro_batch)) for t in graph.tasks)
        kinds = {kind for kind, _ in self._count}
        self.reduced = Kind.ALL_REDUCE in kinds
        self.staged, self.staged_kv = Kind.WEIGHT_STAGE in kinds, Kind.KV_STAGE in kinds
        self.dense = bool(kinds & {Kind.DENSE_FETCH, Kind.HEAD_FETCH})
        self.dense_units = self.kv_fetches = 0
        self.from_disk = any(t.kind == Kind.WEIGHT_READ and pages_of(t) for t in graph.tasks)
        self.kv = {(t.layer, t.micro_batch): k for k, t in enumerate(_of_kind(graph, Kind.KV_FETCH))}
        self.routed_layers = {t.layer for t in _of_kind(graph, Kind.EXPERT_FFN, Kind.CPU_EXPERT_FFN)}
        self.slot_layers = self._layers_of_slots()
        self.prefetched = {t.layer for t in _of_kind(graph, Kind.EXPERT_PREFETCH)}
        self.host_shares = self._layers_of_host_share()
        self._put_in_place()

    def _layers_of_slots(self) -> dict[int, int]:
        """Number of each layer whose experts lie in slots."""
        found = sorted({t.layer for t in _of_kind(self.graph, Kind.EXPERT_CORRECTION)})
        return {layer: k for k, layer in enumerate(found)}

    def _layers_of_host_share(self) -> dict[int, int]:
        """Number of each layer of which a share is read from disk for the CPU: at least all that stream less."""
        found = [t.layer for t in _of_kind(self.graph, Kind.WEIGHT_READ) if not pages_of(t)]
        if not found:
            return {}
        shares = self.graph.pages.layer_share
        most = max(shares[layer] for layer in found)
        read = [layer for layer in sorted(self.routed_layers) if shares[layer] <= most]
        return {layer: k for k, layer in enumerate(read)}

    def _put_in_place(self) -> None:
        plan = self.graph.pages
        for page in range(plan.ahead):
            self.use(PAGE, page % plan.num_slots, page).in_place = True
        if self.dense:
            self.use(DENSE, 0, 0).in_place = True

    def done(self, task: Task) -> None:
        """Notes that the accesses of a task are in the table."""
        self._seen[task.kind, (task.layer, task.micro_batch)] += 1

    def is_first(self, task: Task) -> bool:
        """Whether no task of its kind at its place is done."""
        return not self._seen[task.kind, (task.layer, task.micro_batch)]

    def is_last(self, task: Task) -> bool:
        """Whether all other tasks of its kind at its place are done."""
        key = (task.kind, (task.layer, task.micro_batch))
        return self._seen[key] == self._count[key] - 1

    def micro_batches(self, task: Task) -> Iterable[int]:
        """Those that a task computes."""
        return range(len(self.graph.slice.micro_batches)) if task.micro_batch is None else (task.micro_batch,)

    def on_cpu(self, layer: int, j: int | None) -> bool:
        """Whether the CPU computes experts there."""
        return self._count[Kind.CPU_EXPERT_FFN, (layer, j)] > 0

    def _spilled(self, layer: int, j: int | None) -> bool:
        """Whether a hidden state comes back from the host; a load at the same place may bring an expert result."""
        return self._count[Kind.HIDDEN_LOAD, (layer, j)] > self.on_cpu(layer, j)

    def read_input(self, i: int, task: Task) -> None:
        """The hidden state that enters the layer, and the layer's dense weights."""
        stage = RELOADED if self._spilled(task.layer, task.micro_batch) else WHOLE
        self.read(i, HIDDEN, task.micro_batch, task.layer, stage)
        self.read_dense(i, task.layer)

    def read_dense(self, i: int, unit: int) -> None:
        """A layer's dense weights, or those of the LM head."""
        if self.dense:
            self.read(i, DENSE, unit % DENSE_BUFFERS, unit)

    def write_output(self, i: int, task: Task) -> None:
        """The hidden state that leaves the layer."""
        for j in self.micro_batches(task):
            self.write(i, HIDDEN, j, task.layer + 1, PARTIAL if self.reduced else WHOLE)


def pages_of(task: Task) -> Sequence[int]:
    """Numbers of the pages that a task brings or uses."""
    return range(*task.work.pages)


def _of_kind(graph: TaskGraph, *kinds: Kind) -> Iterable[Task]:
    return (task for task in graph.tasks if task.kind in kinds)

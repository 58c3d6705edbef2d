"""Which buffers each task of a graph reads and writes."""

from collections import Counter
from collections.abc import Callable, Iterable

from hrm.schedule.buffers import (
    ATTENDED,
    DENSE,
    DENSE_BUFFERS,
    HIDDEN,
    HOST_ATTENDED,
    HOST_QKV,
    HOST_RESULT,
    HOST_ROUTED,
    HOST_SHARE,
    KV,
    PAGE,
    PARTIAL,
    QKV,
    READ,
    RELOADED,
    ROUTED,
    SPILLED,
    STAGED,
    STAGED_KV,
    WHOLE,
    BufferTable,
)
from hrm.schedule.builder import STAGING_BUFFERS
from hrm.schedule.graph import TaskGraph
from hrm.schedule.steps import KV_BUFFERS
from hrm.schedule.task import Kind, Task

Place = tuple[int, int | None]
"""Layer and micro-batch; None for all of them."""


class Accesses(BufferTable):
    """What every task of a graph reads and writes."""

    def __init__(self, graph: TaskGraph) -> None:
        super().__init__()
        self.graph = graph
        self._seen: Counter[tuple[Kind, Place]] = Counter()
        self._count = Counter((t.kind, (t.layer, t.micro_batch)) for t in graph.tasks)
        kinds = {kind for kind, _ in self._count}
        self._reduced = Kind.ALL_REDUCE in kinds
        self._staged, self._staged_kv = Kind.WEIGHT_STAGE in kinds, Kind.KV_STAGE in kinds
        self._dense = bool(kinds & {Kind.DENSE_FETCH, Kind.HEAD_FETCH})
        self._units = self._fetches = 0
        self._from_disk = any(t.kind == Kind.WEIGHT_READ and _pages(t) for t in graph.tasks)
        self._kv = {(t.layer, t.micro_batch): k for k, t in enumerate(_of_kind(graph, Kind.KV_FETCH))}
        self._routed_layers = {t.layer for t in _of_kind(graph, Kind.EXPERT_FFN, Kind.CPU_EXPERT_FFN)}
        self._host_shares = self._layers_of_host_share()
        self._put_in_place()
        for i, task in enumerate(graph.tasks):
            _ACCESSES[task.kind](self, i, task)
            self._seen[task.kind, (task.layer, task.micro_batch)] += 1

    def _layers_of_host_share(self) -> dict[int, int]:
        """Number of each layer of which a share is read from disk for the CPU: at least all that stream less."""
        found = [t.layer for t in _of_kind(self.graph, Kind.WEIGHT_READ) if not _pages(t)]
        if not found:
            return {}
        shares = self.graph.pages.layer_share
        most = max(shares[layer] for layer in found)
        read = [layer for layer in sorted(self._routed_layers) if shares[layer] <= most]
        return {layer: k for k, layer in enumerate(read)}

    def _put_in_place(self) -> None:
        plan = self.graph.pages
        for page in range(plan.ahead):
            self.use(PAGE, page % plan.num_slots, page).in_place = True
        if self._dense:
            self.use(DENSE, 0, 0).in_place = True

    def _micro_batches(self, task: Task) -> Iterable[int]:
        return range(len(self.graph.slice.micro_batches)) if task.micro_batch is None else (task.micro_batch,)

    def _on_cpu(self, layer: int, j: int | None) -> bool:
        return self._count[Kind.CPU_EXPERT_FFN, (layer, j)] > 0

    def _spilled(self, layer: int, j: int | None) -> bool:
        """Whether a hidden state comes back from the host; a load at the same place may bring an expert result."""
        return self._count[Kind.HIDDEN_LOAD, (layer, j)] > self._on_cpu(layer, j)

    def _read_input(self, i: int, task: Task) -> None:
        stage = RELOADED if self._spilled(task.layer, task.micro_batch) else WHOLE
        self.read(i, HIDDEN, task.micro_batch, task.layer, stage)
        self._read_dense(i, task.layer)

    def _read_dense(self, i: int, unit: int) -> None:
        if self._dense:
            self.read(i, DENSE, unit % DENSE_BUFFERS, unit)

    def _write_output(self, i: int, task: Task) -> None:
        for j in self._micro_batches(task):
            self.write(i, HIDDEN, j, task.layer + 1, PARTIAL if self._reduced else WHOLE)

    def embedding_load(self, i: int, task: Task) -> None:
        """Writes what the first layer reads."""
        self.write(i, HIDDEN, task.micro_batch, 0, WHOLE)

    def hidden_load(self, i: int, task: Task) -> None:
        """The last at a place where the CPU has experts brings their result, all others a spilled hidden state."""
        place = (task.layer, task.micro_batch)
        last = self._seen[task.kind, place] == self._count[task.kind, place] - 1
        if self._on_cpu(*place) and last:
            self.read(i, HOST_RESULT, task.micro_batch, task.layer)
            self._write_output(i, task)
        else:
            self.read(i, SPILLED, task.micro_batch, task.layer)
            self.write(i, HIDDEN, task.micro_batch, task.layer, RELOADED)

    def hidden_store(self, i: int, task: Task) -> None:
        """The first at a place where the CPU has experts sends them their tokens, all others spill."""
        j = task.micro_batch
        if (self._on_cpu(task.layer, j) or self._on_cpu(task.layer, None)) and not self._seen[
            task.kind, (task.layer, j)
        ]:
            self.read(i, ROUTED, j, task.layer, WHOLE)
            self.write(i, HOST_ROUTED, j, task.layer)
        else:
            self.read(i, HIDDEN, j, task.layer + 1, WHOLE)
            self.write(i, SPILLED, j, task.layer + 1)

    def pre_attention(self, i: int, task: Task) -> None:
        """Hidden state to Q, K, V."""
        self._read_input(i, task)
        self.write(i, QKV, task.micro_batch, task.layer)

    def qkv_offload(self, i: int, task: Task) -> None:
        """Q, K, V to the host."""
        self.read(i, QKV, task.micro_batch, task.layer)
        self.write(i, HOST_QKV, task.micro_batch, task.layer)

    def cpu_attention(self, i: int, task: Task) -> None:
        """Q, K, V to attention result, on the host."""
        self.read(i, HOST_QKV, task.micro_batch, task.layer)
        self.write(i, HOST_ATTENDED, task.micro_batch, task.layer)

    def attention_load(self, i: int, task: Task) -> None:
        """Attention result to the GPU."""
        self.read(i, HOST_ATTENDED, task.micro_batch, task.layer)
        self.write(i, ATTENDED, task.micro_batch, task.layer)

    def kv_stage(self, i: int, task: Task) -> None:
        """Cached K, V to page-locked memory, for the fetch at the same place."""
        fetch = self._kv.get((task.layer, task.micro_batch), -1)
        self.write(i, STAGED_KV, fetch % KV_BUFFERS, fetch)

    def kv_fetch(self, i: int, task: Task) -> None:
        """Into the staging buffers in turn."""
        if self._staged_kv:
            self.read(i, STAGED_KV, self._fetches % KV_BUFFERS, self._fetches)
        self.write(i, KV, self._fetches % KV_BUFFERS, self._fetches)
        self._fetches += 1

    def kv_store(self, i: int, task: Task) -> None:
        """New K, V to the host; that memory is never used again within a pass."""
        self.read(i, QKV, task.micro_batch, task.layer)

    def gpu_attention(self, i: int, task: Task) -> None:
        """Q, K, V and, where it is streamed, the KV cache to attention result."""
        self.read(i, QKV, task.micro_batch, task.layer)
        fetch = self._kv.get((task.layer, task.micro_batch))
        if fetch is not None:
            self.read(i, KV, fetch % KV_BUFFERS, fetch)
        self.write(i, ATTENDED, task.micro_batch, task.layer)

    def post_attention(self, i: int, task: Task) -> None:
        """Attention result and residual to routed tokens, or to the layer's output where it has no experts."""
        self._read_input(i, task)
        self.read(i, ATTENDED, task.micro_batch, task.layer)
        if task.layer in self._routed_layers:
            self.write(i, ROUTED, task.micro_batch, task.layer, PARTIAL if self._reduced else WHOLE)
        else:
            self._write_output(i, task)

    def all_reduce(self, i: int, task: Task) -> None:
        """The first of a routed layer sums the routed tokens, the other one its output."""
        j, first = task.micro_batch, not self._seen[task.kind, (task.layer, task.micro_batch)]
        name, number = (ROUTED, task.layer) if first and task.layer in self._routed_layers else (HIDDEN, task.layer + 1)
        self.read(i, name, j, number, PARTIAL)
        self.write(i, name, j, number, WHOLE)

    def expert_ffn(self, i: int, task: Task) -> None:
        """Routed tokens to a part of the layer's output."""
        for j in self._micro_batches(task):
            self.read(i, ROUTED, j, task.layer, WHOLE)
        for page in _pages(task):
            self.read(i, PAGE, page % self.graph.pages.num_slots, page)
        self._write_output(i, task)

    def cpu_expert_ffn(self, i: int, task: Task) -> None:
        """Routed tokens to a part of the layer's output, on the host."""
        for j in self._micro_batches(task):
            self.read(i, HOST_ROUTED, j, task.layer)
        share = self._host_shares.get(task.layer)
        if share is not None:
            self.read(i, HOST_SHARE, share % STAGING_BUFFERS, share)
        self.write(i, HOST_RESULT, task.micro_batch, task.layer)

    def weight_read(self, i: int, task: Task) -> None:
        """A page, or the share of a layer that the CPU computes, from disk."""
        for page in _pages(task):
            self.write(i, READ, page % self._disk_buffers, page)
        if not _pages(task):
            share = self._host_shares.get(task.layer, -1)
            self.write(i, HOST_SHARE, share % STAGING_BUFFERS, share)

    @property
    def _disk_buffers(self) -> int:
        return STAGING_BUFFERS * max(self.graph.pages.per_layer)

    def weight_stage(self, i: int, task: Task) -> None:
        """A page to page-locked memory."""
        for page in _pages(task):
            if self._from_disk:
                self.read(i, READ, page % self._disk_buffers, page)
            self.write(i, STAGED, page % STAGING_BUFFERS, page)

    def weight_fetch(self, i: int, task: Task) -> None:
        """A page to its slot."""
        plan = self.graph.pages
        for page in _pages(task):
            if self._staged:
                self.read(i, STAGED, page % STAGING_BUFFERS, page)
            elif self._from_disk:
                self.read(i, READ, page % self._disk_buffers, page)
            self.write(i, PAGE, page % plan.num_slots, page)
            self.use(PAGE, page % plan.num_slots, page).kept = page >= plan.per_pass

    def dense_fetch(self, i: int, task: Task) -> None:
        """Units take turns: layers, the LM head, the next pass's first layer."""
        self._units += 1
        use = self.use(DENSE, self._units % DENSE_BUFFERS, self._units)
        use.writers.append(i)
        use.kept = self._units > self.graph.num_layers

    def lm_head(self, i: int, task: Task) -> None:
        """Reads what the last layer wrote."""
        self.read(i, HIDDEN, task.micro_batch, self.graph.num_layers, WHOLE)
        self._read_dense(i, self.graph.num_layers)


def _of_kind(graph: TaskGraph, *kinds: Kind) -> Iterable[Task]:
    return (task for task in graph.tasks if task.kind in kinds)


def _pages(task: Task) -> range:
    return range(*task.work.pages)


_ACCESSES: dict[Kind, Callable[[Accesses, int, Task], None]] = {
    Kind.EMBEDDING_LOAD: Accesses.embedding_load,
    Kind.HIDDEN_LOAD: Accesses.hidden_load,
    Kind.HIDDEN_STORE: Accesses.hidden_store,
    Kind.PRE_ATTENTION: Accesses.pre_attention,
    Kind.QKV_OFFLOAD: Accesses.qkv_offload,
    Kind.CPU_ATTENTION: Accesses.cpu_attention,
    Kind.ATTENTION_LOAD: Accesses.attention_load,
    Kind.KV_FETCH: Accesses.kv_fetch,
    Kind.KV_STORE: Accesses.kv_store,
    Kind.GPU_ATTENTION: Accesses.gpu_attention,
    Kind.POST_ATTENTION: Accesses.post_attention,
    Kind.EXPERT_FFN: Accesses.expert_ffn,
    Kind.CPU_EXPERT_FFN: Accesses.cpu_expert_ffn,
    Kind.WEIGHT_READ: Accesses.weight_read,
    Kind.WEIGHT_STAGE: Accesses.weight_stage,
    Kind.KV_STAGE: Accesses.kv_stage,
    Kind.WEIGHT_FETCH: Accesses.weight_fetch,
    Kind.DENSE_FETCH: Accesses.dense_fetch,
    Kind.HEAD_FETCH: Accesses.dense_fetch,
    Kind.ALL_REDUCE: Accesses.all_reduce,
    Kind.LM_HEAD: Accesses.lm_head,
}

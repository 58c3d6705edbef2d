"""Whether the tasks of a graph do everything a pass has to do, each part of it once."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hrm.schedule.faults import fault, named
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import MicroBatch
from hrm.schedule.slot_coverage import IN_SLOTS, check_slots
from hrm.schedule.task import Kind, Resource, Task
from hrm.schedule.weight_coverage import PAGED, check_plan, check_weights

SUMS = 2  # over the GPUs, per layer and micro-batch
SAME_SHARE = 1e-9  # shares of experts are sums of fractions

_COPY_IN = (Resource.HTOD, Resource.ZERO_COPY)
_QUEUES: dict[Kind, tuple[Resource, ...]] = {
    Kind.EMBEDDING_LOAD: _COPY_IN,
    Kind.HIDDEN_LOAD: _COPY_IN,
    Kind.HIDDEN_STORE: (Resource.DTOH,),
    Kind.PRE_ATTENTION: (Resource.GPU,),
    Kind.QKV_OFFLOAD: (Resource.DTOH,),
    Kind.CPU_ATTENTION: (Resource.CPU,),
    Kind.ATTENTION_LOAD: _COPY_IN,
    Kind.KV_FETCH: (Resource.HTOD,),
    Kind.KV_STORE: (Resource.DTOH,),
    Kind.GPU_ATTENTION: (Resource.GPU,),
    Kind.POST_ATTENTION: (Resource.GPU,),
    Kind.EXPERT_FFN: (Resource.GPU,),
    Kind.CPU_EXPERT_FFN: (Resource.CPU,),
    Kind.WEIGHT_READ: (Resource.DISK,),
    Kind.WEIGHT_STAGE: (Resource.HOST,),
    Kind.KV_STAGE: (Resource.HOST,),
    Kind.WEIGHT_FETCH: (Resource.HTOD,),
    Kind.EXPERT_PREFETCH: (Resource.HTOD,),
    Kind.EXPERT_CORRECTION: _COPY_IN,
    Kind.DENSE_FETCH: (Resource.HTOD,),
    Kind.HEAD_FETCH: (Resource.HTOD,),
    Kind.ALL_REDUCE: (Resource.LINK,),
    Kind.LM_HEAD: (Resource.GPU,),
}
_EXPERTS = (Kind.EXPERT_FFN, Kind.CPU_EXPERT_FFN)
_BATCH_WIDE = (*_EXPERTS, *PAGED, *IN_SLOTS, Kind.HIDDEN_LOAD, Kind.DENSE_FETCH, Kind.HEAD_FETCH)


@dataclass(frozen=True)
class Once:
    """A kind that each micro-batch needs once per layer: with how many tokens, and in which layers."""

    kind: Kind
    tokens: Callable[[MicroBatch], int]
    layers: Callable[[int], range] = range


_ONCE = (
    Once(Kind.EMBEDDING_LOAD, lambda mb: mb.tokens, lambda _: range(1)),
    Once(Kind.PRE_ATTENTION, lambda mb: mb.tokens),
    Once(Kind.QKV_OFFLOAD, lambda mb: mb.sequences - mb.gpu_sequences),
    Once(Kind.CPU_ATTENTION, lambda mb: mb.sequences - mb.gpu_sequences),
    Once(Kind.ATTENTION_LOAD, lambda mb: mb.sequences - mb.gpu_sequences),
    Once(Kind.GPU_ATTENTION, lambda mb: mb.gpu_sequences + mb.prompt_tokens),
    Once(Kind.POST_ATTENTION, lambda mb: mb.tokens),
    Once(Kind.LM_HEAD, lambda mb: mb.tokens, lambda n: range(n - 1, n)),
)


def check_coverage(graph: TaskGraph) -> None:
    """Every micro-batch through every layer once, all experts and pages of the pass, nothing twice.

    Raises:
        ScheduleError: what is missing, done twice, or on a queue that cannot do it.
    """
    check_plan(graph)
    for i, task in enumerate(graph.tasks):
        _check_place(graph, i, task)
    for once in (*_ONCE, *_kv_streams(graph)):
        _check_once(graph, once)
    _check_experts(graph)
    _check_reduced(graph)
    check_weights(graph)
    check_slots(graph)


def _check_place(graph: TaskGraph, i: int, task: Task) -> None:
    n = len(graph.slice.micro_batches)
    wrong = ""
    if not 0 <= task.layer < graph.num_layers:
        wrong = f"has layer {task.layer} of {graph.num_layers}"
    elif task.micro_batch is not None and not 0 <= task.micro_batch < n:
        wrong = f"has micro-batch {task.micro_batch} of {n}"
    elif task.micro_batch is None and task.kind not in _BATCH_WIDE:
        wrong = "serves all micro-batches; this kind serves one"
    elif task.work.pages[1] > graph.pages.per_pass + graph.pages.ahead:
        wrong = f"has pages up to {task.work.pages[1]}; the pass has {graph.pages.per_pass + graph.pages.ahead}"
    elif task.resource not in _QUEUES[task.kind]:
        wrong = f"is on queue {task.resource}; it runs on {' or '.join(_QUEUES[task.kind])}"
    if wrong:
        raise fault(graph, f"{named(graph, i)} {wrong}")


def _kv_streams(graph: TaskGraph) -> tuple[Once, Once]:
    """KV cache is streamed and stored for all decoding micro-batches or none, and stored for all prompts or none."""
    batch = graph.slice.micro_batches
    decode = any(task.kind == Kind.KV_FETCH for task in graph.tasks)
    stores = (t.micro_batch for t in graph.tasks if t.kind == Kind.KV_STORE and t.micro_batch is not None)
    prefill = any(batch[j].is_prefill for j in stores)
    return (
        Once(Kind.KV_FETCH, lambda mb: mb.gpu_sequences * decode),
        Once(Kind.KV_STORE, lambda mb: mb.gpu_sequences * decode + mb.prompt_tokens * prefill),
    )


def _check_once(graph: TaskGraph, once: Once) -> None:
    found: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for i, task in enumerate(graph.tasks):
        if task.kind == once.kind:
            found[task.layer, task.micro_batch].append(i)
    for layer in once.layers(graph.num_layers):
        for j, mb in enumerate(graph.slice.micro_batches):
            needed, tasks = once.tokens(mb), found.pop((layer, j), [])
            tokens = sum(graph.tasks[i].work.tokens for i in tasks)
            if tokens != needed or len(tasks) != (needed > 0):
                at = f" (task {', '.join(map(str, tasks))})" if tasks else ""
                raise fault(
                    graph, f"{once.kind} L{layer} M{j} takes {tokens} of {needed} tokens in {len(tasks)} tasks{at}"
                )
    for tasks in found.values():
        raise fault(graph, f"{named(graph, tasks[0])} is in a layer without {once.kind}")


def _check_experts(graph: TaskGraph) -> None:
    """Shares of one layer's experts add up to one for every micro-batch, and their pages to the layer's."""
    shares: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    pages: dict[tuple[int, int], list[int]] = defaultdict(list)
    batch = range(len(graph.slice.micro_batches))
    for i, task in enumerate(graph.tasks):
        if task.kind in _EXPERTS:
            served = batch if task.micro_batch is None else (task.micro_batch,)
            _check_tokens(graph, i, task, served)
            for j in served:
                shares[task.layer][j] += task.work.share
                pages[task.layer, j] += range(*task.work.pages)
    for layer, of_layer in enumerate(map(graph.pages.of_layer, range(graph.num_layers))):
        if layer not in shares and not of_layer:
            continue
        for j in batch:
            if not math.isclose(shares[layer][j], 1.0, abs_tol=SAME_SHARE):
                raise fault(graph, f"experts of L{layer} M{j}: their shares add up to {shares[layer][j]:.6g}, not 1")
            if sorted(pages[layer, j]) != list(of_layer):
                raise fault(
                    graph, f"experts of L{layer} M{j} read pages {_ranges(pages[layer, j])}, not {_ranges(of_layer)}"
                )


def _check_tokens(graph: TaskGraph, i: int, task: Task, served: Iterable[int]) -> None:
    needed = sum(graph.slice.micro_batches[j].tokens for j in served)
    if task.work.tokens != needed:
        raise fault(graph, f"{named(graph, i)} takes {task.work.tokens} of {needed} tokens")


def _ranges(pages: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(pages))) or "none"


def _check_reduced(graph: TaskGraph) -> None:
    """On several GPUs every layer sums twice: after attention, and after its FFN or experts."""
    found = Counter((t.layer, t.micro_batch) for t in graph.tasks if t.kind == Kind.ALL_REDUCE)
    if not found:
        return
    for layer in range(graph.num_layers):
        for j in range(len(graph.slice.micro_batches)):
            if found[layer, j] != SUMS:
                raise fault(graph, f"all_reduce L{layer} M{j} runs {found[layer, j]} times, not {SUMS}")

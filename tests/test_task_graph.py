"""Task graphs of every schedule are valid, and every way of breaking one is refused by what is wrong with it."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from random_schedules import Case, cases
from tiny_schedules import NAMED, SIZES, SLICES, VARIANTS, policy, tiny_graph

from hrm.errors import ScheduleError
from hrm.schedule.build import build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.kept_prompts import KEPT_CHUNKS
from hrm.schedule.order import Order, waited_for
from hrm.schedule.pages import PagePlan
from hrm.schedule.slice import MicroBatch, PassSlice, decode_slice
from hrm.schedule.task import Kind, Resource, Task, Work
from hrm.schedule.validate import validate
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload_file import load_workload

GRAPH = tiny_graph(NAMED["cgopipe"])
SPLIT = tiny_graph(policy("module_batched", "split", dense_weights_on_gpu=0.5, host_weights="pageable"))
STREAMED = tiny_graph(policy("cgopipe", "streamed", hidden_states_by="kernel", weights_on_disk=0.25))
MIXED = tiny_graph(VARIANTS["auto_mixed_experts_on_cpu"], "mixed")
FREE = tiny_graph(policy("cgopipe", hidden_states_by="kernel", dense_weights_on_gpu=0.5))  # copies wait for no other
DISK = tiny_graph(VARIANTS["cgopipe_disk_experts_on_cpu"])
PARALLEL = tiny_graph(VARIANTS["cgopipe_two_gpus"])
CACHED = tiny_graph(VARIANTS["expert_cache_predictive"])


def find(graph: TaskGraph, kind: Kind, layer: int, micro_batch: int | None = None, nth: int = 0) -> int:
    found = [
        i for i, t in enumerate(graph.tasks) if (t.kind, t.layer, t.micro_batch) == (kind, layer, micro_batch)
    ]  # fmt: skip
    return found[nth]


def with_task(graph: TaskGraph, i: int, **changes: object) -> TaskGraph:
    return replace(graph, tasks=(*graph.tasks[:i], replace(graph.tasks[i], **changes), *graph.tasks[i + 1 :]))


def with_work(graph: TaskGraph, i: int, **changes: object) -> TaskGraph:
    return with_task(graph, i, work=replace(graph.tasks[i].work, **changes))


def without_edges(graph: TaskGraph, i: int, *kinds: Kind) -> TaskGraph:
    """Task i no longer waits for tasks of these kinds."""
    kept = tuple(dep for dep in graph.tasks[i].after if graph.tasks[dep].kind not in kinds)
    assert kept != graph.tasks[i].after
    return with_task(graph, i, after=kept)


def reordered(graph: TaskGraph, order: list[int]) -> TaskGraph:
    """The same tasks in another order of the list, which is that of the queues; edges still name the same tasks."""
    place = {old: new for new, old in enumerate(order)}

    def moved(task: Task) -> Task:
        return replace(task, after=tuple(sorted(place[dep] for dep in task.after if dep in place)))

    return replace(graph, tasks=tuple(moved(graph.tasks[old]) for old in order))


def swapped(graph: TaskGraph, a: int, b: int) -> TaskGraph:
    order = list(range(len(graph.tasks)))
    order[a], order[b] = b, a
    return reordered(graph, order)


def dropped(graph: TaskGraph, i: int) -> TaskGraph:
    """Without task i; what waited for it waits for what it waited for."""
    bridged = tuple(
        replace(t, after=tuple(sorted({*t.after, *graph.tasks[i].after} - {i}))) if i in t.after else t
        for t in graph.tasks
    )
    return reordered(replace(graph, tasks=bridged), [k for k in range(len(graph.tasks)) if k != i])


def repeated(graph: TaskGraph, i: int) -> TaskGraph:
    return replace(graph, tasks=(*graph.tasks, graph.tasks[i]))


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_schedule_is_valid(variant: str, name: str):
    validate(tiny_graph(VARIANTS[variant], name))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_random_policies_are_valid(case: Case):
    validate(case.graph())


@pytest.mark.parametrize(("chunks", "waits"), [(2, False), (KEPT_CHUNKS, False), (KEPT_CHUNKS + 1, True)])
def test_few_prompts_stay_on_the_gpu_beside_decoding(chunks: int, waits: bool):
    """Many leave it between layers, and wait for each other; so do any where nothing is decoded."""
    chosen = policy("auto", "hybrid", mixed_prefill=True)
    tokens = chosen.prefill_chunk_tokens
    prompt = MicroBatch(prompt_tokens=tokens, prompts=1.0, prompt_len=tokens, prompt_len_sq=tokens**2)
    decode = MicroBatch(sequences=4, gpu_sequences=2, context_len=9.0)
    for work, spilled in ((PassSlice((decode, *[prompt] * chunks)), waits), (PassSlice((prompt,) * chunks), True)):
        graph = build_graph(SIZES, work, chosen)
        assert any(task.kind == Kind.HIDDEN_STORE for task in graph.tasks) == spilled
        loads = [task for task in graph.tasks if task.kind == Kind.EMBEDDING_LOAD and task.work.prompt_tokens]
        assert any(task.after for task in loads) == (spilled and chunks > 2)


def test_known_graphs_hold_what_the_cases_below_break():
    graphs = (GRAPH, SPLIT, STREAMED, MIXED, FREE, DISK, PARALLEL, CACHED)
    for graph in graphs:
        validate(graph)
    assert {t.kind for graph in graphs for t in graph.tasks} == set(Kind)


Broken = Callable[[], TaskGraph]
FETCH, FFN, POST, PRE = Kind.WEIGHT_FETCH, Kind.EXPERT_FFN, Kind.POST_ATTENTION, Kind.PRE_ATTENTION
BROKEN: dict[str, tuple[str, Broken]] = {
    # deadlock
    "cycle through edges": (
        r"tasks wait for each other: task \d+ <.*>, which waits for task",
        lambda: with_task(GRAPH, 0, after=(1,)),
    ),
    "cycle through a queue": (
        r"tasks wait for each other: .*post_attention L1 M0",
        lambda: swapped(GRAPH, find(GRAPH, POST, 1, 0), find(GRAPH, FFN, 2, 0)),
    ),
    "long cycle": (r"which waits for \d+ more", lambda: with_task(GRAPH, 0, after=(len(GRAPH.tasks) - 1,))),
    "waits for nothing there is": (
        r"task 1 <GPU pre_attention L0 M0 after \[999\]> waits for task 999; there are 69",
        lambda: with_task(GRAPH, 1, after=(999,)),
    ),
    "waits for a negative index": (r"waits for task -1", lambda: with_task(GRAPH, 1, after=(-1,))),
    # each removed edge, by the buffer it protects
    "hidden state read early": (
        r"<GPU pre_attention L0 M0 after \[\]> may read hidden state of M0 entering L0 before task 0 <HTOD embedding",
        lambda: without_edges(GRAPH, 1, Kind.EMBEDDING_LOAD),
    ),
    "spilled hidden state read early": (
        r"hidden_load L1 M\d .* may read hidden state of M\d entering L1 on the host before",
        lambda: _without_spill_edge(tiny_graph(VARIANTS["cgopipe_kernel"], "prefill")),
    ),
    "Q, K, V sent early": (
        r"qkv_offload L0 M0 .* may read Q, K, V of M0 in L0 on the GPU before",
        lambda: without_edges(GRAPH, find(GRAPH, Kind.QKV_OFFLOAD, 0, 0), PRE),
    ),
    "CPU attends early": (
        r"cpu_attention L0 M0 .* may read Q, K, V of M0 in L0 on the host before",
        lambda: without_edges(GRAPH, find(GRAPH, Kind.CPU_ATTENTION, 0, 0), Kind.QKV_OFFLOAD),
    ),
    "attention result loaded early": (
        r"attention_load L0 M0 .* may read attention result of M0 in L0 on the host before",
        lambda: without_edges(GRAPH, find(GRAPH, Kind.ATTENTION_LOAD, 0, 0), Kind.CPU_ATTENTION),
    ),
    "attention result used early": (
        r"post_attention L0 M0 .* may read attention result of M0 in L0 on the GPU before",
        lambda: without_edges(GRAPH, find(GRAPH, POST, 0, 0), Kind.ATTENTION_LOAD),
    ),
    "K, V overwritten before they are stored": (
        r"pre_attention L1 M0 .* writes Q, K, V of M0 in L1 on the GPU while .*kv_store L0 M0.* may still use",
        lambda: without_edges(STREAMED, find(STREAMED, PRE, 1, 0), Kind.KV_STORE),
    ),
    "KV cache attended before it has come": (
        r"gpu_attention L0 M0 .* may read KV staging buffer 0, fetch 0 before",
        lambda: without_edges(STREAMED, find(STREAMED, Kind.GPU_ATTENTION, 0, 0), Kind.KV_FETCH),
    ),
    "KV cache fetched over one in use": (
        r"kv_fetch L0 M2 .* writes KV staging buffer 0, fetch 2 while .*gpu_attention L0 M0.* may still use",
        lambda: without_edges(STREAMED, find(STREAMED, Kind.KV_FETCH, 0, 2), Kind.GPU_ATTENTION),
    ),
    "KV cache fetched before it is staged": (
        r"kv_fetch L0 M0 .* may read staging buffer 0 of cached K, V, fetch 0 before",
        lambda: without_edges(SPLIT, find(SPLIT, Kind.KV_FETCH, 0, 0), Kind.KV_STAGE),
    ),
    "experts before their page": (
        r"expert_ffn L1 M0 pages 3:6 .* may read page slot 3, page 3 before task \d+ <HTOD weight_fetch L1 pages 3:4",
        lambda: without_edges(FREE, find(FREE, FFN, 1, 0), FETCH),
    ),
    "page fetched over one in use": (
        r"weight_fetch L2 pages 6:7 after \[\]> writes page slot 0, page 6 while .*expert_ffn L0 M\d",
        lambda: without_edges(GRAPH, find(GRAPH, FETCH, 2), FFN),
    ),
    "page fetched after the first of its readers only": (
        r"writes page slot 0, page 6 while task \d+ <GPU expert_ffn L0 M2 pages 0:3.* may still use",
        lambda: with_task(GRAPH, find(GRAPH, FETCH, 2), after=(find(GRAPH, FFN, 0, 0),)),
    ),
    "page fetched before it is staged": (
        r"weight_fetch L\d pages \d+:\d+ .* may read staging buffer \d, page \d+ before",
        lambda: without_edges(SPLIT, find(SPLIT, FETCH, 1), Kind.WEIGHT_STAGE),
    ),
    "page staged over one in use": (
        r"weight_stage L\d pages \d+:\d+ .* writes staging buffer \d, page \d+ while .*weight_fetch",
        lambda: without_edges(SPLIT, find(SPLIT, Kind.WEIGHT_STAGE, 2), FETCH),
    ),
    "page fetched before it is read from disk": (
        r"weight_fetch L1 pages 3:4 .* may read disk buffer 3, page 3 before",
        lambda: without_edges(DISK, find(DISK, FETCH, 1), Kind.WEIGHT_READ),
    ),
    "disk buffer overwritten": (
        r"weight_read L0 pages 9:10 .* writes disk buffer 3, page 9 while .*weight_fetch L1 pages 3:4",
        lambda: without_edges(STREAMED, find(STREAMED, Kind.WEIGHT_READ, 0), FETCH),
    ),
    "CPU's experts before they are read from disk": (
        r"cpu_expert_ffn L0 M0 .* may read disk buffer 0 of the CPU's experts, read 0 before",
        lambda: without_edges(DISK, find(DISK, Kind.CPU_EXPERT_FFN, 0, 0), Kind.WEIGHT_READ),
    ),
    "CPU's experts overwritten": (
        r"weight_read L2 .* writes disk buffer 0 of the CPU's experts, read 2 while .*cpu_expert_ffn L0",
        lambda: without_edges(DISK, find(DISK, Kind.WEIGHT_READ, 2), Kind.CPU_EXPERT_FFN),
    ),
    "tokens sent to the CPU early": (
        r"hidden_store L0 M0 .* may read routed tokens of M0 in L0 before",
        lambda: without_edges(DISK, find(DISK, Kind.HIDDEN_STORE, 0, 0), POST),
    ),
    "CPU's experts before their tokens": (
        r"cpu_expert_ffn L0 M0 .* may read routed tokens of M0 in L0 on the host before",
        lambda: without_edges(DISK, find(DISK, Kind.CPU_EXPERT_FFN, 0, 0), Kind.HIDDEN_STORE),
    ),
    "CPU's result loaded early": (
        r"hidden_load L0 M0 .* may read result of the CPU's experts for M0 in L0 before",
        lambda: without_edges(DISK, find(DISK, Kind.HIDDEN_LOAD, 0, 0), Kind.CPU_EXPERT_FFN),
    ),
    "CPU's result left out": (
        r"lm_head L2 M1 .* may read hidden state of M1 entering .* before .*hidden_load L2 M1",
        lambda: without_edges(DISK, find(DISK, Kind.LM_HEAD, 2, 1), Kind.HIDDEN_LOAD),
    ),
    "dense weights used early": (
        r"pre_attention L1 M0 .* may read dense weight buffer 1, unit 1 before .*dense_fetch L1",
        lambda: without_edges(FREE, find(FREE, PRE, 1, 0), Kind.DENSE_FETCH),
    ),
    "dense weights overwritten": (
        r"dense_fetch L2 .* writes dense weight buffer 0, unit 2 while .* may still use",
        lambda: without_edges(FREE, find(FREE, Kind.DENSE_FETCH, 2), POST),
    ),
    "partial sums used": (
        r"expert_ffn L0 M0 .* may read routed tokens of M0 in L0 before .*all_reduce L0 M0",
        lambda: without_edges(PARALLEL, find(PARALLEL, FFN, 0, 0), Kind.ALL_REDUCE),
    ),
    # queues out of order
    "fetches swapped": (
        r"may read page slot 4, page 4 before",
        lambda: swapped(FREE, find(FREE, FETCH, 1, nth=1), find(FREE, FETCH, 1, nth=2)),
    ),
    "dense weights swapped": (
        r"dense_fetch L2 .*stands where dense_fetch L1 has to",
        lambda: _swapped_contents(SPLIT, find(SPLIT, Kind.DENSE_FETCH, 1), find(SPLIT, Kind.DENSE_FETCH, 2)),
    ),
    # something missing or twice
    "fetch dropped": (r"page 5 of L1 has no weight_fetch", lambda: dropped(GRAPH, find(GRAPH, FETCH, 1, nth=2))),
    "fetch repeated": (r"repeats page 3 of task 9", lambda: repeated(GRAPH, find(GRAPH, FETCH, 1))),
    "fetch of what is in place": (
        r"has page 2; the pass fetches from 3 up to 12",
        lambda: with_work(GRAPH, find(GRAPH, FETCH, 1), pages=(2, 3)),
    ),
    "page beyond the next pass": (
        r"has pages up to 99; the pass has 12",
        lambda: with_work(GRAPH, find(GRAPH, FETCH, 1), pages=(3, 99)),
    ),
    "page of another layer": (r"has page 3, which is of L1", lambda: with_task(GRAPH, find(GRAPH, FETCH, 1), layer=2)),
    "part of a page": (
        r"copies a share of 0.1, not that of its pages",
        lambda: with_work(GRAPH, find(GRAPH, FETCH, 1), share=0.1),
    ),
    "staging dropped": (r"has no weight_stage", lambda: dropped(SPLIT, find(SPLIT, Kind.WEIGHT_STAGE, 1))),
    "disk read dropped": (r"has no weight_read", lambda: dropped(DISK, find(DISK, Kind.WEIGHT_READ, 0, nth=1))),
    "CPU's disk read dropped": (
        r"cpu_expert_ffn L1 M0 .* reads disk buffer 1 of the CPU's experts, read 1, which nothing writes",
        lambda: dropped(DISK, find(DISK, Kind.WEIGHT_READ, 1)),
    ),
    "dense fetch dropped": (
        r"head_fetch L2 .*stands where dense_fetch L2|3 units of dense weights are fetched, not 4",
        lambda: dropped(SPLIT, find(SPLIT, Kind.DENSE_FETCH, 0)),
    ),
    "attention dropped": (
        r"cpu_attention L1 M2 takes 0 of 4 tokens in 0 tasks",
        lambda: dropped(GRAPH, find(GRAPH, Kind.CPU_ATTENTION, 1, 2)),
    ),
    "attention twice": (
        r"gpu_attention L1 M2 takes 4 of 2 tokens in 2 tasks \(task \d+, \d+\)",
        lambda: repeated(SPLIT, find(SPLIT, Kind.GPU_ATTENTION, 1, 2)),
    ),
    "attention of too few sequences": (
        r"gpu_attention L1 M2 takes 1 of 2 tokens in 1 tasks",
        lambda: with_work(SPLIT, find(SPLIT, Kind.GPU_ATTENTION, 1, 2), sequences=1),
    ),
    "layer skipped": (
        r"pre_attention L1 M0 takes 0 of 4 tokens",
        lambda: dropped(GRAPH, find(GRAPH, PRE, 1, 0)),
    ),
    "LM head twice": (r"lm_head L2 M1 takes 8 of 4", lambda: repeated(GRAPH, find(GRAPH, Kind.LM_HEAD, 2, 1))),
    "LM head in a layer before the last": (
        r"lm_head L2 M0 takes 0 of 4",
        lambda: with_task(GRAPH, find(GRAPH, Kind.LM_HEAD, 2, 0), layer=1),
    ),
    "embedding in a later layer": (
        r"<HTOD embedding_load L1 M0 after \[\]> is in a layer without embedding_load",
        lambda: replace(GRAPH, tasks=(*GRAPH.tasks, replace(GRAPH.tasks[0], layer=1))),
    ),
    "KV fetch dropped": (r"kv_fetch L1 M1 takes 0 of 2", lambda: dropped(SPLIT, find(SPLIT, Kind.KV_FETCH, 1, 1))),
    "KV store dropped": (r"kv_store L1 M1 takes 0 of 2", lambda: dropped(SPLIT, find(SPLIT, Kind.KV_STORE, 1, 1))),
    "KV stage dropped": (
        r"kv_fetch L1 M1 .* reads staging buffer \d of cached K, V, fetch \d, which nothing writes",
        lambda: dropped(SPLIT, find(SPLIT, Kind.KV_STAGE, 1, 1)),
    ),
    "experts dropped": (
        r"experts of L1 M1: their shares add up to 0, not 1",
        lambda: dropped(GRAPH, find(GRAPH, FFN, 1, 1)),
    ),
    "experts twice": (r"their shares add up to 2, not 1", lambda: repeated(GRAPH, find(GRAPH, FFN, 1, 1))),
    "experts' share": (
        r"experts of L1 M1: their shares add up to 0.75, not 1",
        lambda: with_work(GRAPH, find(GRAPH, FFN, 1, 1), share=0.75),
    ),
    "experts of too few tokens": (
        r"expert_ffn L1 M1 .* takes 3 of 4 tokens",
        lambda: with_work(GRAPH, find(GRAPH, FFN, 1, 1), sequences=3),
    ),
    "experts without a page": (
        r"experts of L1 M1 read pages 3, 4, not 3, 4, 5",
        lambda: with_work(GRAPH, find(GRAPH, FFN, 1, 1), pages=(3, 5)),
    ),
    "CPU's result never loaded": (
        r"nothing reads result of the CPU's experts for M0 in L0, written by .*cpu_expert_ffn",
        lambda: dropped(DISK, find(DISK, Kind.HIDDEN_LOAD, 0, 0)),
    ),
    "tokens never sent": (
        r"reads routed tokens of M0 in L0 on the host, which nothing writes",
        lambda: dropped(DISK, find(DISK, Kind.HIDDEN_STORE, 0, 0)),
    ),
    "sum dropped": (
        r"all_reduce L0 M0 runs 1 times, not 2",
        lambda: dropped(PARALLEL, find(PARALLEL, Kind.ALL_REDUCE, 0, 0)),
    ),
    # out of place
    "layer out of range": (r"has layer 3 of 3", lambda: with_task(GRAPH, 0, layer=3)),
    "micro-batch out of range": (r"has micro-batch 3 of 3", lambda: with_task(GRAPH, 0, micro_batch=3)),
    "one for all": (r"serves all micro-batches; this kind serves one", lambda: with_task(GRAPH, 1, micro_batch=None)),
    "wrong queue": (
        r"is on queue GPU; it runs on CPU",
        lambda: with_task(GRAPH, find(GRAPH, Kind.CPU_ATTENTION, 0, 0), resource=Resource.GPU),
    ),
    "plan of another model": (
        r"page plan covers 2 layers of 3",
        lambda: replace(GRAPH, pages=PagePlan((3, 3), (0.5, 0.5), 6, 3)),
    ),
    "more in place than slots": (
        r"5 page slots hold 6 of 9 pages",
        lambda: replace(GRAPH, pages=replace(GRAPH.pages, num_slots=5, ahead=6)),
    ),
    "too few slots": (
        r"writes page slot \d, page \d while .* may still use what was there before",
        lambda: replace(GRAPH, pages=replace(GRAPH.pages, num_slots=5)),
    ),
    "no slots": (
        r"0 page slots hold 0 of 9 pages",
        lambda: replace(GRAPH, pages=replace(GRAPH.pages, num_slots=0, ahead=0)),
    ),
}


def _without_spill_edge(graph: TaskGraph) -> TaskGraph:
    loads = (i for i, t in enumerate(graph.tasks) if t.kind == Kind.HIDDEN_LOAD and t.work.prompt_tokens and t.layer)
    return without_edges(graph, next(loads), Kind.HIDDEN_STORE)


def _swapped_contents(graph: TaskGraph, a: int, b: int) -> TaskGraph:
    first, second = graph.tasks[a], graph.tasks[b]
    return with_task(with_task(graph, a, layer=second.layer), b, layer=first.layer)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused(case: str):
    message, broken = BROKEN[case]
    with pytest.raises(ScheduleError) as caught:
        validate(broken())
    assert str(caught.value).startswith("schedule ")
    assert re.search(message, str(caught.value)), str(caught.value)


ROUTER = {POST, Kind.ALL_REDUCE}  # whose choice decides what demand-fetched pages hold: no buffer of the graph
STEPPED = {name for name in VARIANTS if name.startswith("flexgen")}  # waits for more than its buffers ask for


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - STEPPED))
def test_no_edge_can_be_dropped(variant: str):
    """Every edge that nothing else implies protects a buffer, and its loss is seen."""
    graph = tiny_graph(VARIANTS[variant], "mixed" if VARIANTS[variant].mixed_prefill else "decode")
    edges = [(i, dep) for i, task in enumerate(graph.tasks) for dep in task.after]
    for i, dep in random.Random(1).sample(edges, min(50, len(edges))):
        cut = with_task(graph, i, after=tuple(other for other in graph.tasks[i].after if other != dep))
        fetches = graph.tasks[i].kind in (FETCH, Kind.WEIGHT_READ, Kind.WEIGHT_STAGE)
        routed = graph.schedule == "expert_cache" and fetches and graph.tasks[dep].kind in ROUTER
        # prompts' hidden states come late to spare memory, which no order of tasks could spoil
        room = graph.tasks[i].kind in (Kind.EMBEDDING_LOAD, Kind.HIDDEN_LOAD) and graph.tasks[dep].resource == "GPU"
        if routed or room or Order(cut).before(dep, i):
            continue
        with pytest.raises(ScheduleError):
            validate(cut)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_order_is_reachability(name: str):
    """Vector clocks against a walk over all that a task waits for, however far back."""
    graph = tiny_graph(NAMED[name])
    order, waits, reached = Order(graph), waited_for(graph), list[set[int]]()
    for earlier in waits:  # the builders emit every task behind what it waits for
        reached.append(set(earlier).union(*(reached[dep] for dep in earlier)))
    for then, before in enumerate(reached):
        assert {first for first in range(len(waits)) if order.before(first, then)} == before


def test_order_does_not_depend_on_the_order_of_the_list_across_queues():
    """A list that holds every queue in its order, one queue after the other, is full of forward references."""
    by_queue = [i for queue in GRAPH.queues.values() for i in queue]
    assert by_queue != sorted(by_queue)
    validate(reordered(GRAPH, by_queue))


def test_five_thousand_tasks_are_validated_in_well_under_a_second():
    """Of the processor's time, whatever else runs: a check of every pair would take minutes."""
    rates = make_rates(load_profile("t4"), load_model("mixtral-8x7b"), load_workload("mtbench", 128, None))
    chosen = policy("cgopipe", micro_batches=20)
    graph = build_graph(rates.sizes, decode_slice(chosen, 100.0), chosen)
    assert len(graph.tasks) > 4000
    begin = time.process_time()
    validate(graph)
    assert time.process_time() - begin < 1.0


def test_tasks_and_graphs_are_readable():
    assert repr(GRAPH.tasks[10]) == "<GPU post_attention L0 M0 after [1, 8]>"
    assert repr(GRAPH.tasks[9]) == "<HTOD weight_fetch L1 pages 3:4 after []>"
    assert repr(Task(Kind.HEAD_FETCH, 2, None, Resource.HTOD, Work(), (4,))) == "<HTOD head_fetch L2 after [4]>"
    assert repr(GRAPH) == (
        "<TaskGraph cgopipe: 3 layers, 3 micro-batches, 69 tasks (GPU 30, CPU 9, HTOD 21, DTOH 9)>"
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", [n for n, p in VARIANTS.items() if p.experts_on_gpu < 1 and p.schedule != "expert_cache"]
)
def test_next_to_nothing_on_the_gpu_needs_no_endless_slots(name: str) -> None:
    """The pool holds an infinite number of such pages; a pass has as many as it has."""
    share = {"experts_on_gpu": 2.2250738585072014e-308, "weights_on_gpu": 0.0, "page_pool_bytes": 1e9}
    graph = tiny_graph(VARIANTS[name].model_copy(update=share))
    assert graph.pages.num_slots <= 2 * sum(graph.pages.per_layer)

"""Task graphs as text: what is written is read back equal, wrong lines are named, and the schedules are as reviewed.

`python tests/test_task_graph_text.py` writes the files in tests/data/schedules again; read the difference before
keeping it. They hold a decode pass of every named schedule: 3 layers, 3 micro-batches of 4 sequences (one where the
schedule runs one), half of the experts on the GPU.
"""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_schedules import Case, cases
from tiny_schedules import NAMED, SLICES, VARIANTS, tiny_graph

from hrm.errors import ScheduleError
from hrm.schedule.graph import TaskGraph
from hrm.schedule.order import Order
from hrm.schedule.task import Kind, Resource
from hrm.schedule.text import dump, load
from hrm.schedule.validate import validate

GOLDENS = Path(__file__).parent / "data" / "schedules"
TEXT = dump(tiny_graph(NAMED["cgopipe"]))
LINES = TEXT.splitlines()
FIRST_TASK = LINES.index("tasks 69") + 1

fixed = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_schedule_is_as_reviewed(name: str):
    assert dump(tiny_graph(NAMED[name])) == (GOLDENS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_reviewed_schedules_are_valid(name: str):
    validate(load((GOLDENS / f"{name}.txt").read_text()))


def order_of(graph: TaskGraph, resource: Resource, *kinds: Kind) -> list[tuple[Kind, int, int | None]]:
    tasks = (graph.tasks[i] for i in graph.queues[resource])
    return [(t.kind, t.layer, t.micro_batch) for t in tasks if t.kind in kinds]


def test_cgopipe_is_algorithm_1():
    """MoE-Lightning, arXiv 2411.11217: CPU attention two micro-batches ahead, one page behind each hidden load."""
    graph = load((GOLDENS / "cgopipe.txt").read_text())
    places = [(layer, j) for layer in range(3) for j in range(3)]
    gpu = order_of(graph, Resource.GPU, Kind.PRE_ATTENTION, Kind.POST_ATTENTION)
    expected = [(Kind.PRE_ATTENTION, *place) for place in places[:2]]
    for k, place in enumerate(places):
        expected.append((Kind.POST_ATTENTION, *place))
        expected += [(Kind.PRE_ATTENTION, *ahead) for ahead in places[k + 2 : k + 3]]
    assert gpu == expected
    assert order_of(graph, Resource.CPU, Kind.CPU_ATTENTION) == [(Kind.CPU_ATTENTION, *place) for place in places]
    copies = order_of(graph, Resource.HTOD, Kind.ATTENTION_LOAD, Kind.WEIGHT_FETCH)
    assert copies[::2] == [(Kind.ATTENTION_LOAD, *place) for place in places]
    assert copies[1::2] == [(Kind.WEIGHT_FETCH, (layer + 1) % 3, None) for layer, _ in places]
    pages = [t.work.pages for t in graph.tasks if t.kind == Kind.WEIGHT_FETCH]
    assert pages == [(page, page + 1) for page in range(3, 12)]


def test_fastdecode_copies_a_layer_in_one_piece_before_the_hidden_loads():
    copies = order_of(tiny_graph(NAMED["fastdecode"]), Resource.HTOD, Kind.ATTENTION_LOAD, Kind.WEIGHT_FETCH)
    for layer in range(3):
        assert copies[4 * layer] == (Kind.WEIGHT_FETCH, (layer + 1) % 3, None)
        assert [kind for kind, _, _ in copies[4 * layer + 1 : 4 * layer + 4]] == [Kind.ATTENTION_LOAD] * 3


def test_flexgen_loads_nothing_before_the_step_it_belongs_to():
    graph = load((GOLDENS / "flexgen.txt").read_text())
    order, found = Order(graph), {(t.kind, t.layer, t.micro_batch): i for i, t in enumerate(graph.tasks)}
    for layer in range(3):
        attended = found[Kind.POST_ATTENTION, layer, 0]
        assert order.before(attended, found[Kind.KV_FETCH, layer, 2])
        assert not order.before(attended, found[Kind.KV_FETCH, layer, 1])
        if layer:
            done = found[Kind.EXPERT_FFN, layer - 1, 2]
            assert order.before(done, found[Kind.WEIGHT_FETCH, layer, None])


def test_module_batched_runs_experts_over_the_batch():
    graph = tiny_graph(NAMED["module_batched"])
    experts = [t for t in graph.tasks if t.kind == Kind.EXPERT_FFN]
    assert {(t.micro_batch, t.work.sequences) for t in experts} == {(None, 12)}


def test_expert_cache_fetches_behind_the_router():
    graph = tiny_graph(NAMED["expert_cache"])
    fetches = [t for t in graph.tasks if t.kind == Kind.WEIGHT_FETCH]
    routers = [{(graph.tasks[i].kind, graph.tasks[i].layer) for i in t.after} for t in fetches]
    assert all((Kind.POST_ATTENTION, t.layer) in found for t, found in zip(fetches, routers, strict=True))


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: str, name: str):
    graph = tiny_graph(VARIANTS[variant], name)
    assert load(dump(graph)) == graph


@settings(fixed, max_examples=100)
@given(cases())
def test_round_trip_of_random_graphs(case: Case):
    graph = case.graph()
    text = dump(graph)
    assert load(text) == graph
    assert dump(load(text)) == text


def test_lines_are_short():
    assert max(map(len, LINES)) <= 80


def with_line(number: int, new: str | None) -> str:
    """The text with line `number` (from 1) replaced, or left out."""
    return "\n".join([*LINES[: number - 1], *([] if new is None else [new]), *LINES[number:]])


def task_line(index: int) -> int:
    return FIRST_TASK + 1 + index


MALFORMED: dict[str, tuple[str, int, str | None]] = {
    # case: (message, line that is changed, what it becomes)
    "empty first line": (r"line 1 is not 'hrm task graph, format 1'", 1, ""),
    "another format": (r"line 1 is not", 1, "hrm task graph, format 2"),
    "no schedule": (r"line 2 is not the header line 'schedule': 'layers 3'", 2, None),
    "schedule of two words": (r"line 2 has 2 words behind 'schedule', not 1", 2, "schedule cgo pipe"),
    "no layers": (r"line 3 is not the header line 'layers'", 3, None),
    "layers in words": (r"line 3 has layers 'three', which is no whole number", 3, "layers three"),
    "negative layers": (r"line 3 has layers '-3'", 3, "layers -3"),
    "layers beyond reason": (r"line 3 has layers '9{30}'", 3, "layers " + "9" * 30),
    "digits of another script": (r"line 3 has layers '３'", 3, "layers ３"),
    "no blocks": (r"line 4 is not the header line 'blocks'", 4, None),
    "blocks that are no numbers": (r"line 4 has block start 'x'", 4, "blocks 8 x"),
    "blocks out of order": (r"blocks start at \(30, 8, 51\)", 4, "blocks 30 8 51"),
    "blocks beyond the end": (r"blocks start at \(8, 30, 99\), of 69 tasks", 4, "blocks 8 30 99"),
    "no slots": (r"line 5 is not the header line 'slots'", 5, None),
    "slots without ahead": (r"line 5 has 'behind' where 'ahead'", 5, "slots 6 behind 3"),
    "pages of a wrong layer": (r"line 6 has 'L1' where L0 comes next", 6, None),
    "pages of too few layers": (r"line 7 is the last of 2 layers with pages; the graph has 3", 8, None),
    "pages without share": (r"line 6 has 2 words behind 'pages', not 3", 6, "pages L0 3"),
    "share that is no number": (r"line 6 has share 'half'", 6, "pages L0 3 share=half"),
    "share that is not finite": (r"line 6 has share 'inf'", 6, "pages L0 3 share=inf"),
    "share that is negative": (r"line 6 has share '-0.5'", 6, "pages L0 3 share=-0.5"),
    "micro-batch out of order": (r"line 9 has 'M1' where M0 comes next", 9, None),
    "empty micro-batch": (r"line 11: pass: micro-batch 1 has 0 decoding sequences and 0", 10, "micro_batch M1"),
    "micro-batch of nothing": (r"line 9 has '' where M0 comes next", 9, "micro_batch"),
    "unknown field of a micro-batch": (
        r"line 9 unknown field 'sequence'; did you mean",
        9,
        "micro_batch M0 sequence=4",
    ),
    "no tasks line": (r"line 12 is not the header line 'tasks'", 12, None),
    "too many tasks announced": (r"ends after line 81, before task 69 of 70", 12, "tasks 70"),
    "too few tasks announced": (r"line 81 stands behind the last of 68 tasks", 12, "tasks 68"),
    "task left out": (r"line 16 has index 4; 3 comes next", task_line(3), None),
    "task index out of order": (r"line 16 has index 7; 3 comes next", task_line(3), "7 CPU cpu_attention L0 M0"),
    "blank line": (r"line 16 is no task", task_line(3), ""),
    "no layer": (r"line 16 is no task", task_line(3), "3 CPU cpu_attention"),
    "unknown queue": (
        r"line 16 unknown resource 'CPUS'; did you mean CPU",
        task_line(3),
        "3 CPUS cpu_attention L0 M0 sequences=4 after 2",
    ),
    "unknown kind": (
        r"line 16 unknown kind 'cpu_atention'; did you mean cpu_attention",
        task_line(3),
        "3 CPU cpu_atention L0 M0 sequences=4 after 2",
    ),
    "layer without its letter": (r"line 16 has '0' where layer L0 to L2", task_line(3), "3 CPU cpu_attention 0 M0"),
    "layer out of range": (r"line 16 has layer 3 of 3", task_line(3), "3 CPU cpu_attention L3 M0"),
    "micro-batch out of range": (r"line 16 has micro-batch 3 of 3", task_line(3), "3 CPU cpu_attention L0 M3"),
    "micro-batch without number": (r"line 16 has micro-batch '', which", task_line(3), "3 CPU cpu_attention L0 M"),
    "unknown field": (
        r"line 16 unknown field 'tokens'; did you mean prompt_tokens",
        task_line(3),
        "3 CPU cpu_attention L0 M0 tokens=4",
    ),
    "field twice": (
        r"line 16 has sequences twice",
        task_line(3),
        "3 CPU cpu_attention L0 M0 sequences=4 sequences=4",
    ),
    "fraction of a sequence": (
        r"line 16 has sequences '4.5', which is no whole number",
        task_line(3),
        "3 CPU cpu_attention L0 M0 sequences=4.5",
    ),
    "pages that are no range": (
        r"line 16 has pages '3', which is no range",
        task_line(3),
        "3 HTOD weight_fetch L1 pages=3",
    ),
    "ahead that is no flag": (r"line 16 has ahead '1'; it is 'yes'", task_line(3), "3 HTOD weight_fetch L1 ahead=1"),
    "after nothing": (r"line 16 names no task behind 'after'", task_line(3), "3 CPU cpu_attention L0 M0 after"),
    "after a task there is not": (
        r"line 16 has task 69 of 69",
        task_line(3),
        "3 CPU cpu_attention L0 M0 after 69",
    ),
    "after a name": (r"line 16 has task 'two'", task_line(3), "3 CPU cpu_attention L0 M0 after two"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_text_is_refused(case: str):
    message, number, new = MALFORMED[case]
    with pytest.raises(ScheduleError) as caught:
        load(with_line(number, new))
    assert str(caught.value).startswith("task graph: ")
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "\x00", "hrm task graph, format 1\n"])
def test_truncated_text_is_refused(text: str):
    with pytest.raises(ScheduleError):
        load(text)


@settings(fixed, max_examples=300)
@given(st.data())
def test_any_damage_is_refused_or_read(data: st.DataObject):
    """Whatever happens to a character or a word, loading raises nothing but ScheduleError."""
    at = data.draw(st.integers(0, len(TEXT) - 1))
    new = data.draw(st.text(max_size=3) | st.sampled_from(["-1", "0", "9" * 25, " ", "\n", "after", "L", "M9"]))
    damaged = TEXT[:at] + new + TEXT[at + data.draw(st.integers(0, 4)) :]
    try:
        graph = load(damaged)
        validate(graph)
    except ScheduleError:
        return
    assert isinstance(graph, TaskGraph)


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for schedule, chosen in NAMED.items():
        (GOLDENS / f"{schedule}.txt").write_text(dump(tiny_graph(chosen)))

"""What an expert cache costs beside bytes and products: stated in profiles, simulated, and measured."""

from dataclasses import replace

import pytest
import torch
from test_calibration import made_calibration
from tiny_schedules import SLICES, VARIANTS, tiny_graph

from hrm.errors import HrmError
from hrm.predict.durations import STEPS, TaskCosts
from hrm.predict.rates import Rates
from hrm.schedule.task import Kind, Resource
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.hardware_parts import Number
from hrm.spec.hardware_yaml import parse_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload import make_workload
from runtime.calibration.cache_overhead import measure_gate_overhead, measure_graph_overhead
from runtime.calibration.plan import make_plan
from runtime.calibration.profile import profile_text
from runtime.calibration.results import OverheadResult, spread
from runtime.calibration.shapes import shapes_of
from runtime.calibration.tables import result_rows

ONE = spread((1e-4,))
ON_CPU = "expert_cache_predictive_on_cpu"
HERE = [name for name, p in VARIANTS.items() if p.weights_on_disk == 0 and p.tensor_parallel_size == 1]
GRAPHS = [(name, part) for name in HERE for part in SLICES]


def rates_with(task: float | None, graph: float | None, gate: float | None) -> Rates:
    def number(value: float | None) -> Number | None:
        return (
            None
            if value is None
            else Number(value=value, text=f"{value} s", kind="measured", source="x", date="2026-01")
        )

    profile = load_profile("t4")
    gpu = profile.gpu.model_copy(update={"task_overhead": number(task), "graph_overhead": number(graph)})
    cpu = profile.cpu.model_copy(update={"gate_overhead": number(gate)})
    rates = make_rates(profile, load_model("mixtral-8x7b"), make_workload(8, 77, name="w", where="test"))
    changed = profile.model_copy(update={"gpu": gpu, "cpu": cpu})
    return replace(rates, machine=replace(rates.machine, profile=changed))


@pytest.mark.parametrize(("name", "part"), GRAPHS)
def test_only_what_the_runtime_repeats_costs_a_graph(name: str, part: str) -> None:
    graph = tiny_graph(VARIANTS[name], part)
    plain, changed = (TaskCosts(rates_with(1e-4, value, None)) for value in (None, 2e-5))
    for task in graph.tasks:
        saved = plain.of_task(task, graph).seconds - changed.of_task(task, graph).seconds
        repeated = graph.repeats_steps and task.kind in STEPS
        assert saved == pytest.approx(8e-5 if repeated else 0.0, abs=1e-12)


def test_which_passes_repeat_their_steps() -> None:
    graphs = {(name, part): tiny_graph(VARIANTS[name], part) for name, part in GRAPHS}
    repeating = {key for key, graph in graphs.items() if graph.repeats_steps}
    assert all(VARIANTS[name].caches_whole_experts for name, _ in repeating)
    for key in repeating:
        (only,) = graphs[key].slice.micro_batches
        assert only.sequences > 0 and only.prompt_tokens == 0


@pytest.mark.parametrize(("name", "part"), GRAPHS)
def test_a_decision_keeps_copies_and_the_cpu_waiting(name: str, part: str) -> None:
    graph = tiny_graph(VARIANTS[name], part)
    plain, changed = (TaskCosts(rates_with(None, None, value)) for value in (None, 3e-4))
    for task in graph.tasks:
        waits = task.kind == Kind.EXPERT_CORRECTION or (task.kind == Kind.CPU_EXPERT_FFN and task.work.experts > 0)
        before, after = plain.of_task(task, graph), changed.of_task(task, graph)
        assert after.seconds - before.seconds == pytest.approx(3e-4 if waits else 0.0, abs=1e-12)
        assert after.overhead - before.overhead == pytest.approx(3e-4 if waits else 0.0, abs=1e-12)
    kinds = {task.resource for task in graph.tasks if task.kind == Kind.CPU_EXPERT_FFN}
    assert kinds <= {Resource.CPU}


def test_calibration_states_both() -> None:
    found = OverheadResult(ONE, ONE, graph=spread((2e-5, 3e-5, 4e-5)), gate=spread((4e-4,)))
    made = replace(made_calibration(), overhead=found)
    profile = parse_profile(profile_text(made, "mine"), "mine.yaml")
    graph, gate = profile.gpu.graph_overhead, profile.cpu.gate_overhead
    assert graph is not None and gate is not None
    assert (graph.value, gate.value) == (pytest.approx(3e-5), pytest.approx(4e-4))
    rows = {row[0]: row[1] for row in result_rows(made)}
    assert rows["least time of a GPU task, a graph"] == "30 us" and rows["an expert cache's decision"] == "400 us"


def test_neither_is_stated_where_there_is_none() -> None:
    text = profile_text(replace(made_calibration(), overhead=OverheadResult(ONE, ONE)), "mine")
    profile = parse_profile(text, "mine.yaml")
    assert profile.gpu.graph_overhead is None and profile.cpu.gate_overhead is None


@pytest.mark.parametrize(
    ("level", "written", "message"),
    [
        ("gpu", "graph_overhead: 20", "gpu.graph_overhead"),
        ("gpu", "graph_overhead: {value: 0 us, kind: measured, source: calibration}", "gpu.graph_overhead"),
        ("gpu", "gate_overhead: {value: 20 us, kind: measured, source: calibration}", "gate_overhead"),
        ("cpu", "gate_overhead: {value: -1 us, kind: measured, source: calibration}", "cpu.gate_overhead"),
        ("cpu", "graph_overhead: {value: 20 us, kind: measured, source: calibration}", "graph_overhead"),
    ],
)
def test_a_wrong_one_is_refused_by_name(level: str, written: str, message: str) -> None:
    behind = "\ncpu:\n" if level == "gpu" else "\nlinks:\n"
    text = profile_text(made_calibration(), "mine")
    assert behind in text
    with pytest.raises(HrmError, match=message):
        parse_profile(text.replace(behind, f"\n  {written}{behind}"), "mine.yaml")


def test_both_are_measured_here() -> None:
    plan = make_plan(shapes_of(load_model("mixtral-8x7b")), "fp32", 2**33, 2**33, quick=True)
    device = torch.device("cpu")
    assert measure_graph_overhead(plan, torch.float32, device) is None
    found = measure_gate_overhead(plan, torch.float32, device)
    assert found is not None and 1e-6 < found.lowest <= found.median <= found.highest < 0.1
    dense = replace(plan, shapes=replace(plan.shapes, num_experts=1, top_k=1))
    assert measure_gate_overhead(dense, torch.float32, device) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_are_measured_on_a_gpu() -> None:
    plan = make_plan(shapes_of(load_model("mixtral-8x7b")), "bf16", 2**33, 2**33, quick=True)
    device = torch.device("cuda")
    found = measure_graph_overhead(plan, torch.bfloat16, device)
    assert found is not None and 1e-6 < found.median < 2e-4
    assert measure_gate_overhead(plan, torch.bfloat16, device) is not None

"""The least time of a task: read from profiles, added by the simulator, weighed by refinement, measured."""

import math
from dataclasses import replace

import pytest
from conftest import Invoke
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_instances import number
from random_schedules import Case, cases
from test_calibration import made_calibration
from tiny_schedules import MODEL, SLICES, VARIANTS, WORKLOAD, pass_slice, policy, tiny_graph

from hrm.errors import HrmError
from hrm.predict.closed_form import predict
from hrm.predict.durations import PAGE_OVERHEAD, TaskCosts
from hrm.predict.layer_rates import Cost
from hrm.predict.rates import Rates
from hrm.predict.sharing import Sharing, sharing_of
from hrm.predict.simulate import PassSimulation, Simulator, lower_bounds
from hrm.schedule.registry import placement_of
from hrm.schedule.task import Kind, Resource, Task
from hrm.search.refine import COARSER, refine
from hrm.search.search import Candidate, SearchResult, make_rates, search_policy
from hrm.spec.hardware import HardwareProfile, load_profile, shipped_profiles
from hrm.spec.hardware_yaml import parse_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.workload_file import load_workload
from runtime.calibration.profile import profile_text
from runtime.calibration.results import OverheadResult, spread
from runtime.calibration.tables import result_rows

ROUNDING = 1e-9
ALONE = Sharing(link_on_pcie=False, dram_bytes_per_s=1e30, shared_wire=False)
seconds = st.floats(-7, -2).map(lambda exponent: 10.0**exponent)
fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def with_overhead(rates: Rates, gpu: float | None, cpu: float | None) -> Rates:
    """The same machine whose profile states these seconds."""
    profile = rates.machine.profile
    for level, value in (("gpu", gpu), ("cpu", cpu)):
        stated = None if value is None else number(value)
        changed = profile.level(level).model_copy(update={"task_overhead": stated})
        profile = profile.model_copy(update={level: changed})
    return replace(rates, machine=replace(rates.machine, profile=profile))


def simulated(rates: Rates, case: Case, sharing: Sharing | None = None) -> PassSimulation:
    return Simulator(rates, sharing).simulate_graph(case.graph())


def pages_of(task: Task) -> int:
    return task.work.pages[1] - task.work.pages[0]


# Profiles


def profile_with(overhead: str) -> HardwareProfile:
    """A calibrated profile in which `overhead` is written under gpu."""
    text = profile_text(made_calibration(), "mine")
    return parse_profile(text.replace("\ncpu:\n", f"\n  task_overhead: {overhead}\ncpu:\n"), "mine.yaml")


def test_a_profile_states_it_with_unit_kind_and_source(hrm: Invoke, tmp_path) -> None:
    profile = profile_with("{value: 0.12 ms, kind: measured, source: calibration, note: issued by one thread}")
    stated = profile.gpu.task_overhead
    assert stated is not None
    assert (stated.value, stated.text, stated.kind) == (pytest.approx(1.2e-4), "0.12 ms", "measured")
    assert profile.cpu.task_overhead is None
    file = tmp_path / "mine.yaml"
    text = profile_text(made_calibration(), "mine").replace(
        "\ncpu:\n", "\n  task_overhead: {value: 0.12 ms, kind: measured, source: calibration}\ncpu:\n"
    )
    file.write_text(text)
    code, out, _ = hrm("profiles", "show", str(file))
    assert code == 0
    (row,) = [line for line in out.splitlines() if "task_overhead" in line]
    assert "gpu.task_overhead" in row
    assert "0.12 ms" in row


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("0.12", "gpu.task_overhead"),
        ("{value: 0.12, kind: measured, source: calibration}", "bare number"),
        ("{value: 0.12 GB, kind: measured, source: calibration}", "gpu.task_overhead"),
        ("{value: 0 ms, kind: measured, source: calibration}", "gpu.task_overhead"),
        ("{value: -1 ms, kind: measured, source: calibration}", "gpu.task_overhead"),
        ("{value: 0.12 ms, kind: guessed, source: calibration}", "gpu.task_overhead.kind"),
        ("{value: 0.12 ms, kind: measured, source: nobody}", "gpu.task_overhead.source"),
        ("[0.12 ms]", "gpu.task_overhead"),
    ],
)
def test_a_wrong_one_is_refused_by_name(written: str, message: str) -> None:
    with pytest.raises(HrmError, match=message):
        profile_with(written)


def test_an_impossible_one_is_refused_in_python_too() -> None:
    profile = load_profile("t4")
    for value in (0.0, -1.0, math.nan, math.inf):
        changed = profile.gpu.model_copy(update={"task_overhead": number(value)})
        with pytest.raises(HrmError, match=r"gpu\.task_overhead"):
            HardwareProfile(**{**dict(profile), "gpu": changed})


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_machines_that_nobody_measured_have_none(name: str) -> None:
    profile = load_profile(name)
    for level in (profile.gpu, profile.cpu):
        assert level.task_overhead is None or level.task_overhead.kind == "measured"


# Simulation


@fixed
@given(cases(), seconds, seconds)
def test_every_task_costs_what_its_queue_says(case: Case, gpu: float, cpu: float) -> None:
    """On top; experts on the GPU: at least that, and a quarter more for every page beyond the first. Copies: as
    before.
    """
    without, stated = with_overhead(case.rates, None, None), with_overhead(case.rates, gpu, cpu)
    before, after = simulated(without, case, ALONE), simulated(stated, case, ALONE)
    for task, old, new in zip(before.timeline.graph.tasks, before.costs, after.costs, strict=True):
        assert (new.flops, new.bytes, new.dram_bytes) == (old.flops, old.bytes, old.dram_bytes)
        if task.resource == Resource.GPU:
            least = gpu * (1 + PAGE_OVERHEAD * max(0, pages_of(task) - 1))
            experts = task.kind == Kind.EXPERT_FFN
            assert new.seconds == (max(old.seconds, least) if experts else old.seconds + gpu)
        elif task.resource == Resource.CPU:
            assert (new.seconds, new.overhead) == (old.seconds + cpu, cpu)
        else:
            assert new == old


def test_pages_count_in_every_pass_of_one_simulator() -> None:
    """Passes alike in all but their pages: 2 and 6 a layer, by the number of micro-batches; 1 + (n - 1) / 4."""
    costs = TaskCosts(with_overhead(make_rates(load_profile("t4"), MODEL, WORKLOAD), 1.0, None))
    for micro_batches, times in ((2, 1.25), (6, 2.25)):
        graph = tiny_graph(policy("cgopipe", micro_batches=micro_batches))
        found = {costs.of_task(task, graph).seconds for task in graph.tasks if task.kind == Kind.EXPERT_FFN}
        assert found == {times}


@fixed
@given(cases(), seconds)
def test_tasks_taken_for_the_same_cost_the_same(case: Case, gpu: float) -> None:
    """The simulator costs one task of each slot; tasks of a slot read as many pages."""
    rates = with_overhead(case.rates, gpu, gpu)
    simulation, costs = simulated(rates, case), TaskCosts(rates)
    graph = simulation.timeline.graph
    assert simulation.costs == [costs.of_task(task, graph) for task in graph.tasks]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_schedule_is_as_if_it_had_no_overhead_where_none_is_stated(name: str) -> None:
    """Bit for bit, beside an overhead too small to be seen."""
    chosen = VARIANTS[name]
    rates = make_rates(load_profile("t4x2" if chosen.tensor_parallel_size == 2 else "t4"), MODEL, WORKLOAD)
    if chosen.weights_on_disk:
        rates = make_rates(disk_profile(rates.machine.profile), MODEL, WORKLOAD)
    for work in SLICES:
        none, tiny = (
            Simulator(r).simulate(chosen, pass_slice(chosen, work)).timeline
            for r in (rates, with_overhead(rates, 1e-40, 1e-40))
        )
        assert none.makespan == tiny.makespan
        assert (none.start == tiny.start).all()


def disk_profile(profile: HardwareProfile) -> HardwareProfile:
    link = profile.links["htod"]
    links = {**profile.links, "disk_read": link, "disk_write": link}
    return profile.model_copy(update={"links": links})


@fixed
@given(cases(most_layers=24), seconds, seconds)
def test_the_shortcut_for_repeated_layers_stays_exact(case: Case, gpu: float, cpu: float) -> None:
    simulator = Simulator(with_overhead(case.rates, gpu, cpu))
    short = simulator.simulate(case.policy, case.slice).timeline
    full = simulator.simulate(case.policy, case.slice, shortcut=False).timeline
    assert short.start == pytest.approx(full.start, abs=ROUNDING * full.makespan)
    assert short.end == pytest.approx(full.end, abs=ROUNDING * full.makespan)
    assert simulator.pass_seconds(case.policy, case.slice) == pytest.approx(full.makespan, rel=ROUNDING)


@fixed
@given(cases(most_layers=8), seconds, seconds, st.floats(1.0, 10.0))
def test_overhead_never_shortens_a_pass_in_which_nothing_is_shared(
    case: Case, gpu: float, cpu: float, factor: float
) -> None:
    passes = [
        simulated(with_overhead(case.rates, *pair), case, ALONE).timeline.makespan
        for pair in ((None, None), (gpu, cpu), (gpu * factor, cpu * factor))
    ]
    assert passes[0] <= passes[1] * (1 + ROUNDING)
    assert passes[1] <= passes[2] * (1 + ROUNDING)
    tasks = case.graph().queues.get(Resource.GPU, ())
    assert passes[1] >= gpu * len(tasks) * (1 - ROUNDING)


@fixed
@given(cases(most_layers=8), seconds, seconds)
def test_contention_costs_at_most_the_time_that_shared_parts_are_busy(case: Case, gpu: float, cpu: float) -> None:
    """As without overhead, where a CPU task's draw on DRAM goes on while its threads wake."""
    rates, sharing = with_overhead(case.rates, gpu, cpu), sharing_of(case.rates.machine)
    alone = simulated(rates, case, ALONE)
    drawn = [
        replace(cost, dram_bytes=cost.dram_bytes * cost.seconds / (cost.seconds - cost.overhead))
        if cost.dram_bytes
        else cost
        for cost in alone.costs
    ]
    bounds = lower_bounds(alone.timeline.graph, drawn, sharing)
    outbound = bounds.get("DTOH", 0.0) + (bounds.get("LINK", 0.0) if sharing.link_on_pcie else 0.0)
    longest = alone.timeline.makespan + bounds["inbound_wire"] + outbound + bounds["cpu_memory_bandwidth"]
    simulation = simulated(rates, case)
    assert simulation.lower_bound_seconds <= simulation.timeline.makespan * (1 + ROUNDING)
    assert simulation.timeline.makespan <= longest * (1 + ROUNDING)


def test_demand_is_taken_over_the_time_in_which_bytes_move() -> None:
    """1 s of 60 GB/s after 1 s of waking threads: 60 % of 100 GB/s, not 30."""
    sharing = Sharing(False, 100e9)
    assert sharing.demand(Resource.CPU, Cost(2.0, 0.0, 60e9, 60e9, overhead=1.0)) == (0.0, 0.0, 0.6)
    assert sharing.demand(Resource.CPU, Cost(1.0, 0.0, 60e9, 60e9)) == (0.0, 0.0, 0.6)
    assert sharing.demand(Resource.CPU, Cost(1.0, overhead=1.0)) == (0.0, 0.0, 0.0)


# Refinement


def rates_of(gpu: float | None = None) -> Rates:
    rates = make_rates(load_profile("t4"), load_model("mixtral-8x7b"), load_workload("mtbench"))
    return with_overhead(rates, gpu, None)


def fine_result(gpu: float | None, micro_batches: int) -> SearchResult:
    """A search whose only candidate has small micro-batches, where the GPU has room for larger ones."""
    rates = rates_of(gpu)
    found = search_policy(rates, "cgopipe")
    mu = 8
    changes = {"batch_size": mu * micro_batches, "micro_batch_size": mu, "ffn_batch_size": mu}
    small = Policy.model_validate(found.policy.model_dump() | changes)
    candidate = Candidate(small, predict(rates, small))
    return replace(found, candidates=(candidate,))


def test_with_overhead_fewer_and_larger_micro_batches_win() -> None:
    (refined,) = refine(fine_result(0.02, 9))
    assert refined.policy.num_micro_batches == 9 // COARSER[-1]
    assert (refined.policy.micro_batch_size, refined.policy.batch_size) == (36, 72)
    (uneven,) = refine(fine_result(0.02, 7))  # halves of 7 are 3: 56 sequences make 3 x 18, quarters 1: too few
    assert (uneven.policy.num_micro_batches, uneven.policy.batch_size) == (3, 54)
    assert placement_of(uneven.policy).min_micro_batches == 2


def test_without_a_stated_overhead_no_coarser_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def noted(simulator, tested):
        tried.append(tested.num_micro_batches)
        return simulate(simulator, tested)

    from hrm.search import refine as module

    simulate = module.simulate_throughput
    monkeypatch.setattr("hrm.search.refine.simulate_throughput", noted)
    refine(fine_result(None, 8))
    assert tried == [8, 16, 32]
    tried.clear()
    refine(fine_result(1e-3, 8))
    assert tried == [8, 16, 32, 4, 2]


# Calibration


def test_calibration_states_median_note_and_spread() -> None:
    measured = OverheadResult(spread((1.1e-4, 1.2e-4, 1.3e-4)), spread((9e-5, 1.0e-4, 2e-4)))
    made = replace(made_calibration(), overhead=measured)
    profile = parse_profile(profile_text(made, "mine"), "mine.yaml")
    gpu, cpu = profile.gpu.task_overhead, profile.cpu.task_overhead
    assert gpu is not None
    assert cpu is not None
    assert (gpu.value, gpu.kind, gpu.source) == (pytest.approx(1.2e-4), "measured", "calibration")
    assert "median of 3, 110 us to 130 us" in (gpu.note or "")
    assert (cpu.value, "90 us to 200 us" in (cpu.note or "")) == (pytest.approx(1e-4), True)
    rows = {row[0]: row for row in result_rows(made)}
    assert rows["least time of a GPU task"][1:] == ("120 us", "110 us to 130 us", "3")
    assert rows["least time of a CPU task"][1] == "100 us"
    assert profile.uncalibrated_parts == parse_profile(profile_text(made_calibration(), "mine"), "m").uncalibrated_parts


def test_overhead_is_measured_here() -> None:
    import torch

    from runtime.calibration.overhead import measure_overhead
    from runtime.calibration.plan import make_plan
    from runtime.calibration.shapes import shapes_of

    plan = make_plan(shapes_of(load_model("mixtral-8x7b")), "bf16", 2**33, 2**33, quick=True)
    found = measure_overhead(plan, torch.float32, torch.device("cpu"))
    for level in (found.gpu, found.cpu):
        assert 0 < level.lowest <= level.median <= level.highest
        assert 1e-7 < level.median < 0.1

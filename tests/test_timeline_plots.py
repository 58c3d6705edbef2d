"""Timelines, comparisons and parity as figures, and timelines as Chrome traces: all that is there, nothing twice."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from hrm.errors import HrmError
from hrm.plotting.compare_bars import Bar, plot_compare_bars
from hrm.plotting.gantt import plot_gantt, plot_gantt_pair
from hrm.plotting.gantt_bars import gantt_window, idle_spans, row_bars
from hrm.plotting.gantt_kinds import KINDS
from hrm.plotting.parity import ParityPoint, parity_figure, plot_parity
from hrm.plotting.style import style
from hrm.plotting.timeline_figures import compare_figure, gantt_figure
from hrm.predict.simulate import Simulator
from hrm.predict.timeline import Timeline
from hrm.report import chrome_trace as trace_module
from hrm.report.chrome_trace import chrome_trace, write_chrome_trace
from hrm.schedule.graph import TaskGraph
from hrm.schedule.pages import NO_PAGES
from hrm.schedule.slice import MicroBatch, PassSlice, decode_slice
from hrm.schedule.task import Kind, Resource, Task, Work
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload_file import load_workload

MIXTRAL = load_model("mixtral-8x7b")
T4 = load_profile("t4")
RATES = make_rates(T4, MIXTRAL, load_workload("mtbench"))


def simulated(schedule: str, layers: int, micro_batches: int) -> Timeline:
    """A decode pass of a few layers under the policy that is best for all of them."""
    policy = search_policy(RATES, schedule).policy
    batch = micro_batches * policy.micro_batch_size
    ffn = batch if policy.ffn_batching == "batch" else policy.micro_batch_size
    policy = policy.model_copy(update={"batch_size": batch, "ffn_batch_size": ffn})
    short = make_rates(T4, replace(MIXTRAL, layers=MIXTRAL.layers[:layers]), RATES.workload)
    return Simulator(short).simulate(policy, decode_slice(policy, RATES.workload.mean_context_len)).timeline


@pytest.fixture(scope="module")
def tiny() -> Timeline:
    return simulated("cgopipe", 3, 3)


@pytest.fixture(scope="module")
def long() -> Timeline:
    return simulated("cgopipe", 8, 4)


def handmade() -> Timeline:
    """Three layers of one GPU task of 2 s each, each after a copy of 1 s; the GPU is idle for the first second."""
    tasks: list[Task] = []
    for layer in range(3):
        tasks.append(Task(Kind.WEIGHT_FETCH, layer, None, Resource.HTOD, Work(pages=(layer, layer + 1)), ()))
        after = (len(tasks) - 1,)
        tasks.append(Task(Kind.EXPERT_FFN, layer, 0, Resource.GPU, Work(sequences=4), after))
    graph = TaskGraph("handmade", 3, PassSlice((MicroBatch(sequences=4),)), NO_PAGES, tuple(tasks), (0, 2, 4))
    start, end = np.array([0.0, 1, 1, 3, 2, 5]), np.array([1.0, 3, 2, 5, 3, 7])
    return Timeline(graph, start, end, end - start)


def many(count: int) -> Timeline:
    """`count` GPU tasks back to back, each a thousandth of a second, norm and experts in turn."""
    kinds = (Kind.PRE_ATTENTION, Kind.EXPERT_FFN)
    tasks = tuple(Task(kinds[i % 2], 0, i % 7, Resource.GPU, Work(sequences=1), ()) for i in range(count))
    graph = TaskGraph("many", 1, PassSlice((MicroBatch(sequences=1),)), NO_PAGES, tasks, (0,))
    at = np.arange(count + 1) / 1000
    return Timeline(graph, at[:-1], at[1:], np.diff(at))


def row_names(ax: Axes) -> list[str]:
    return [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]


def bar_widths(ax: Axes, kind: Kind) -> list[float]:
    """Widths, in x, of the bars drawn in the colour of a kind."""
    found = []
    for collection in (c for c in ax.collections if c.get_hatch() is None and len(c.get_facecolor())):
        if to_hex(collection.get_facecolor()[0]) == KINDS[kind][1].lower():
            found += [float(np.ptp(path.vertices[:, 0])) for path in collection.get_paths()]
    return found


def all_texts(figure: Figure) -> Iterator[Text]:
    for ax in figure.axes:
        legend = ax.get_legend()
        yield from (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *(legend.get_texts() if legend else ()))
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim()))):
            for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
                if low <= place <= high:  # others are not drawn
                    yield label


def assert_texts_are_apart(figure: Figure) -> None:
    """No text of a figure covers another or leaves the page."""
    canvas = FigureCanvasAgg(figure)
    with style():
        canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent().shrunk(0.98, 0.9)) for t in all_texts(figure) if t.get_text()]
    for (name, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), f"{name!r} overlaps {other!r}"
    for name, box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{name!r} leaves the page"
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{name!r} leaves the page"


def test_every_kind_has_a_name_and_a_colour_of_its_own() -> None:
    assert set(KINDS) == set(Kind)
    assert len({name for name, _ in KINDS.values()}) == len({colour for _, colour in KINDS.values()}) == len(Kind)


def test_rows_bars_and_idle_stretches_are_those_of_the_timeline() -> None:
    ax = gantt_figure(handmade()).axes[0]
    assert row_names(ax) == ["GPU", "HTOD"]
    assert [label.get_text().split("\n")[1] for label in ax.get_yticklabels()] == ["85.7% busy", "42.9% busy"]
    assert len(bar_widths(ax, Kind.EXPERT_FFN)) == len(bar_widths(ax, Kind.WEIGHT_FETCH)) == 3
    assert sum(bar_widths(ax, Kind.EXPERT_FFN)) == pytest.approx(6, rel=0.01)  # but the white between bars
    assert [t.get_text() for t in ax.texts].count("0") == 3  # micro-batches
    assert {"L0", "L1", "L2", "layer 0", "layer 1", "layer 2"} <= {t.get_text() for t in ax.texts}
    assert ax.get_xlim() == pytest.approx((0, 7)) and ax.get_xlabel() == "time from the start of the pass (s)"
    assert ax.get_title(loc="left") == "handmade: 7 s per pass, 4 tokens in 1 micro-batch"
    idle = [path.vertices for c in ax.collections if c.get_hatch() for path in c.get_paths()]
    assert sorted(float(np.ptp(v[:, 0])) for v in idle) == pytest.approx([1, 4])  # GPU at first, HTOD at the end


def test_rows_follow_the_order_of_resources_and_the_legend_the_kinds_drawn(tiny: Timeline) -> None:
    ax = gantt_figure(tiny).axes[0]
    assert row_names(ax) == [r.value for r in Resource if r in tiny.graph.queues]
    legend = ax.get_legend()
    assert legend is not None
    drawn = {KINDS[kind][0] for kind in Kind if bar_widths(ax, kind)}
    assert {t.get_text() for t in legend.get_texts()} == drawn | {"idle"}


def test_window_is_when_the_gpu_computes_the_layers(long: Timeline) -> None:
    on_gpu = [i for i in long.graph.queues[Resource.GPU] if long.graph.tasks[i].layer in (3, 4)]
    window = gantt_window(long, (3, 5))
    assert (window.start, window.end) == (long.start[on_gpu].min(), long.end[on_gpu].max())
    assert gantt_window(long, None) == window  # two steady layers in the middle of eight
    assert gantt_window(long, (0, 8)).seconds == long.makespan
    ax = gantt_figure(long).axes[0]
    assert ax.get_xlim()[1] == pytest.approx(window.seconds * 1e3)
    assert ax.get_xlabel() == "time from the start of layer 3 (ms); shown: layers 3 to 4 of 8"


def test_bars_of_a_window_are_cut_to_it_and_fill_it_with_the_idle_stretches(long: Timeline) -> None:
    window = gantt_window(long, None)
    for resource, queue in long.graph.queues.items():
        bars = list(row_bars(long, resource, window, 0.0))
        start, end = long.start[list(queue)].clip(window.start), long.end[list(queue)].clip(max=window.end)
        assert sum(bar.end - bar.start for bar in bars) == pytest.approx((end - start).clip(0).sum())
        idle = idle_spans(bars, window, 0.0)
        covered = sum(bar.end - bar.start for bar in bars) + sum(b - a for a, b in idle)
        assert covered == pytest.approx(window.seconds)
        merged = list(row_bars(long, resource, window, window.seconds / 200))
        assert len(merged) <= len(bars)
        assert sum(bar.end - bar.start for bar in merged) == pytest.approx(sum(bar.end - bar.start for bar in bars))


def test_tasks_too_thin_to_tell_apart_are_merged() -> None:
    ax = gantt_figure(many(70_000), (0, 1)).axes[0]
    bars = sum(len(bar_widths(ax, kind)) for kind in Kind)
    assert 200 < bars < 2000
    assert not [t for t in ax.texts if t.get_text().isdigit()]


@pytest.mark.parametrize("layers", [(2, 2), (5, 3), (-1, 2), (7, 9)])
def test_layers_that_the_pass_lacks_are_refused(long: Timeline, layers: tuple[int, int]) -> None:
    with pytest.raises(HrmError, match=r"gantt: layers .* 0:8"):
        plot_gantt(long, Figure().subplots(), layers)


def test_pair_shares_one_scale(long: Timeline) -> None:
    measured = Timeline(long.graph, long.start * 1.2, long.start * 1.2 + long.end - long.start, long.alone)
    with style():
        figure = Figure(figsize=(14.5, 8))
        figure.subplots_adjust(left=0.1, right=0.98, top=0.94, bottom=0.18, hspace=0.42)
        upper, lower = plot_gantt_pair(long, measured, figure.subplots(2, 1))
    assert upper.get_xlim() == lower.get_xlim() == (0, gantt_window(measured, None).seconds * 1e3)
    assert upper.get_title(loc="left").startswith("cgopipe predicted: ")
    assert lower.get_title(loc="left").startswith("cgopipe measured: ")
    assert_texts_are_apart(figure)


@pytest.mark.parametrize("schedule", ["cgopipe", "module_batched", "flexgen", "layer_streaming"])
def test_texts_of_a_gantt_do_not_overlap(schedule: str) -> None:
    timeline = simulated(schedule, 6, 4)
    assert_texts_are_apart(gantt_figure(timeline))
    assert_texts_are_apart(gantt_figure(timeline, (0, 6)))


BARS = (
    Bar("cgopipe", 71.6, 74.1, "CPU-bound"),
    Bar("flexgen", 25.1, 41.0, ""),
    Bar("layer_streaming with a long name", 4.66, None, "batch of 314 sequences"),
    Bar("nothing", 0.0, None, ""),
)


def test_comparison_draws_values_remarks_and_bounds() -> None:
    figure = compare_figure(BARS)
    ax = figure.axes[0]
    assert [patch.get_width() for patch in ax.patches] == [71.6, 25.1, 4.66, 0.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [bar.label for bar in BARS]
    assert {"71.6", "25.1", "4.66", "0", "CPU-bound", "batch of 314 sequences"} == {t.get_text() for t in ax.texts}
    ticks = sorted(float(path.vertices[0, 0]) for c in ax.collections for path in c.get_paths())
    assert ticks == [41.0, 74.1]
    assert ax.get_legend() is not None
    assert_texts_are_apart(figure)


def test_bounds_below_their_values_leave_the_values_readable() -> None:
    bars = (Bar("a", 5.78, 5.7, "CPU-bound"), Bar("b", 16.4, 9.4, ""), Bar("c", 6.7, None, "x" * 40))
    figure = compare_figure(bars, "s per pass")
    assert figure.axes[0].get_xlabel() == "s per pass"
    assert_texts_are_apart(figure)


@pytest.mark.parametrize(
    ("bars", "message"),
    [((), "no bar"), ((Bar("a", float("nan"), None, ""),), "value of 'a'"), ((Bar("a", 1.0, -1.0, ""),), "bound of")],
)
def test_bars_that_cannot_be_drawn_are_refused(bars: tuple[Bar, ...], message: str) -> None:
    with pytest.raises(HrmError, match=message):
        plot_compare_bars(bars, Figure().subplots())


def parity_points() -> list[ParityPoint]:
    factors = (1.02, 0.9, 1.1, 1.9, 0.5, 1.3, 0.72, 1.0)
    return [
        ParityPoint(f"case {i}", f"system {i % 3}", 10.0 * 1.4**i, 10.0 * 1.4**i * f) for i, f in enumerate(factors)
    ]


def test_parity_draws_every_point_and_names_the_three_worst() -> None:
    figure = parity_figure(parity_points(), "measured (tokens/s)")
    ax = figure.axes[0]
    assert ax.get_xlim() == ax.get_ylim() and ax.get_xscale() == ax.get_yscale() == "log"
    marks = [line for line in ax.lines if line.get_label().startswith("system")]
    assert sum(len(line.get_xdata()) for line in marks) == 8 and len({line.get_marker() for line in marks}) == 3
    assert {t.get_text() for t in ax.texts} == {"case 3 +90%", "case 4 -50%", "case 6 -28%"}  # 1/0.72 is above 1.3
    assert ax.get_xlabel() == "measured (tokens/s)" and ax.get_ylabel() == "predicted (tokens/s)"
    assert ax.get_title(loc="left") == "median error 19%; 4 of 8 within 25%"
    assert_texts_are_apart(figure)


def test_parity_within_the_band_names_nothing() -> None:
    ax = parity_figure([ParityPoint("a", "g", 10, 12), ParityPoint("b", "g", 20, 16)]).axes[0]
    assert not ax.texts


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no point"),
        ([ParityPoint("a", "g", 0.0, 1.0)], "'a' has published 0.0"),
        ([ParityPoint("a", "g", 1.0, float("inf"))], "must be positive"),
        ([ParityPoint("a", str(i), 1.0, 1.0) for i in range(11)], "11 groups"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points: list[ParityPoint], message: str) -> None:
    with pytest.raises(HrmError, match=message):
        plot_parity(points, Figure().subplots())


def events(trace: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def test_trace_has_every_task_once_on_its_thread(tiny: Timeline) -> None:
    trace = json.loads(json.dumps(chrome_trace(tiny, "t4"), allow_nan=False))
    complete = events(trace, "X")
    names = {e["tid"]: e["args"]["name"] for e in events(trace, "M") if e["name"] == "thread_name"}
    order = {e["tid"]: e["args"]["sort_index"] for e in events(trace, "M") if e["name"] == "thread_sort_index"}
    assert [names[tid] for tid in sorted(order, key=lambda t: order[t])] == [r.value for r in tiny.graph.queues]
    assert [e["args"] for e in events(trace, "M") if e["name"] == "process_name"] == [{"name": "t4"}]
    assert len(complete) == len(tiny.graph.tasks)
    for event, task, start in zip(complete, tiny.graph.tasks, tiny.start, strict=True):
        work = task.work
        assert (event["name"], names[event["tid"]]) == (task.kind.value, task.resource.value)
        assert event["ts"] == pytest.approx(start * 1e6, abs=1e-3)
        assert event["args"] == {"layer": task.layer, "micro_batch": task.micro_batch, "pages": list(work.pages),
                                 "sequences": work.sequences, "prompt_tokens": work.prompt_tokens}  # fmt: skip


def test_trace_events_of_a_thread_do_not_overlap_and_add_up(long: Timeline) -> None:
    complete = events(chrome_trace(long, "t4"), "X")
    for resource in long.graph.queues:
        row = sorted((e for e in complete if e["cat"] == resource.value), key=lambda e: (e["ts"], e["dur"]))
        assert len({e["tid"] for e in row}) == 1
        assert all(e["dur"] >= 0 for e in row)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in pairwise(row))
        assert sum(e["dur"] for e in row) == pytest.approx(long.busy_seconds[resource] * 1e6, abs=1e-3 * len(row))


def test_arrows_join_tasks_of_different_threads(tiny: Timeline) -> None:
    trace = chrome_trace(tiny, "t4")
    begins, ends, complete = events(trace, "s"), events(trace, "f"), events(trace, "X")
    tasks = tiny.graph.tasks
    edges = [(b, i) for i, t in enumerate(tasks) for b in t.after if tasks[b].resource != t.resource]
    assert [e["id"] for e in begins] == [e["id"] for e in ends] == list(range(1, len(edges) + 1))
    for (before, i), begin, end in zip(edges, begins, ends, strict=True):
        for event, task in ((begin, complete[before]), (end, complete[i])):
            assert event["tid"] == task["tid"]
            assert task["ts"] <= event["ts"] <= task["ts"] + task["dur"] + 1e-6
        assert begin["ts"] <= end["ts"]


def test_large_traces_have_no_arrows(tiny: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MOST_ARROWED", len(tiny.graph.tasks))
    assert {e["ph"] for e in chrome_trace(tiny, "t4")["traceEvents"]} == {"M", "X"}


def test_trace_file_is_the_trace(tiny: Timeline, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_chrome_trace(tiny, path, "t4")
    assert json.loads(path.read_text()) == chrome_trace(tiny, "t4")


def test_unwritable_trace_path_is_refused(tiny: Timeline, tmp_path: Path) -> None:
    with pytest.raises(HrmError, match=r"missing.*cannot be written \(No such file or directory\); choose another"):
        write_chrome_trace(tiny, tmp_path / "missing" / "trace.json", "t4")

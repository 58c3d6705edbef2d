"""Roofline charts against hand-computed numbers, and figures that draw what they are given."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrm.errors import HrmError, RooflineError
from hrm.plotting.figures import case_study_figure, roofline_figure, save_figure
from hrm.plotting.memory_sweep import plot_memory_sweep
from hrm.plotting.page import to_page
from hrm.plotting.policy_heatmap import plot_policy_heatmap
from hrm.plotting.policy_regions import plot_policy_regions
from hrm.plotting.roofline import plot_roofline
from hrm.plotting.trajectory import plot_trajectory
from hrm.predict.closed_form import predict
from hrm.predict.operator_points import policy_panels, policy_points
from hrm.predict.rates import Rates
from hrm.roofline.case_study import attention_case, ffn_case, ffn_trajectory
from hrm.roofline.chart import Chart, Roof, place_operator
from hrm.roofline.machine_roofs import gpu_over_link, machine_roofs
from hrm.roofline.roofs import HierarchicalRoofline, LevelRoof, check_below_roof
from hrm.search.heatmap import Heatmap, policy_heatmap
from hrm.search.regions import policy_regions
from hrm.search.search import make_rates, search_policy
from hrm.search.sweep import sweep
from hrm.search.vary import parse_axis
from hrm.spec.hardware import HardwareProfile, load_profile, shipped_profiles
from hrm.spec.model_config import load_model
from hrm.spec.precision import Precision, choose_precision
from hrm.spec.workload_file import load_workload

matplotlib.use("Agg")

# Constants of Fig. 4 and 5 of MoE-Lightning (arXiv 2411.11217) for its L4 machine; the GPU peak is the sparse figure.
PAPER = """
name: paper-l4
title: "plot constants of MoE-Lightning Fig. 4 and 5"
device_count: 1
sources: {paper: {title: "arXiv 2411.11217, Fig. 4 and 5", date: "2024-11"}}
gpu:
  processor: {name: L4, peak_flops: {fp16: {value: 242 TFLOP/s, kind: datasheet, source: paper}}}
  memory_capacity: {value: 24 GiB, kind: datasheet, source: paper}
  memory_usable: {value: 22 GiB, kind: datasheet, source: paper}
  memory_bandwidth: {value: 300 GB/s, kind: datasheet, source: paper}
cpu:
  processor: {name: Xeon, cores: 24, peak_flops: {fp32: {value: 1.3 TFLOP/s, kind: datasheet, source: paper}}}
  memory_capacity: {value: 192 GiB, kind: datasheet, source: paper}
  memory_usable: {value: 184 GiB, kind: datasheet, source: paper}
  memory_bandwidth: {value: 100 GB/s, kind: datasheet, source: paper}
links:
  htod:
    technology: PCIe 4.0 x16
    bandwidth: {value: 16 GB/s, kind: datasheet, source: paper}
    latency: {value: 10 us, kind: datasheet, source: paper}
  dtoh:
    technology: PCIe 4.0 x16
    bandwidth: {value: 16 GB/s, kind: datasheet, source: paper}
    latency: {value: 10 us, kind: datasheet, source: paper}
"""
FP16 = Precision("fp16", "fp16", "fp16", "fp16")
MIXTRAL = load_model("mixtral-8x7b")


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> HardwareProfile:
    path = tmp_path_factory.mktemp("profile") / "paper-l4.yaml"
    path.write_text(PAPER)
    return load_profile(str(path))


@pytest.fixture(scope="module")
def t4_rates() -> Rates:
    return make_rates(load_profile("t4"), MIXTRAL, load_workload("mtbench"))


def axes() -> Axes:
    return Figure(figsize=(8, 6)).add_subplot()


def texts(ax: Axes) -> str:
    return "\n".join(text.get_text() for text in ax.texts)


def labels(ax: Axes) -> list[str]:
    return [a.get_label() for a in (*ax.lines, *ax.collections, *ax.images) if not a.get_label().startswith("_")]


def test_published_turning_points_of_the_ffn(paper: HardwareProfile) -> None:
    """Fig. 5: P1 = 1.3e12 / 16e9 = 81.25; at mu = 128 the FFN has 31.95 flops/byte, so P2 = 300 * 31.95 / 16 = 599."""
    chart = ffn_case(paper, MIXTRAL, FP16, micro_batch_size=128)
    assert chart.p1 is not None and chart.p2 is not None and chart.kernel is not None and chart.balance is not None
    assert chart.p1.intensity == pytest.approx(81.25)
    assert chart.p1.flops_per_s == pytest.approx(1.3e12)
    assert chart.kernel.intensity == pytest.approx(31.95, rel=0.02)  # the paper leaves some activations out
    assert chart.p2.intensity == pytest.approx(599, rel=0.02)
    assert chart.p2.flops_per_s == pytest.approx(chart.kernel.flops_per_s)
    assert chart.balance.intensity == pytest.approx(chart.p2.intensity)  # the GPU is memory-bound at mu = 128


def test_ffn_lines_stream_each_weight_once_per_batch(paper: HardwareProfile) -> None:
    """2 flops x top_k 2 x N tokens per parameter of an expert, over 8 experts of 2 bytes each: N / 4 flops per byte."""
    chart = ffn_case(paper, MIXTRAL, FP16, micro_batch_size=128, batch_sizes=(128, 1024, 16384))
    small, middle, large = chart.lines
    assert [line.intensity for line in chart.lines] == pytest.approx([32, 256, 4096], rel=1e-6)
    assert small.streamed_flops_per_s == pytest.approx(16e9 * 32)  # left of P1: the CPU, at its peak, is faster
    assert small.in_place_flops_per_s == pytest.approx(1.3e12) and small.flops_per_s == pytest.approx(1.3e12)
    assert middle.flops_per_s == pytest.approx(16e9 * 256)  # between P1 and P2: on the link's roof
    assert large.flops_per_s == pytest.approx(300e9 * 31.95, rel=0.02)  # right of P2: the GPU's own roof


def test_attention_intensity_counts_both_products(paper: HardwareProfile) -> None:
    """32 query heads on 8 KV heads: 4 flops (scores and PV) x 4 queries per 4 bytes of K and V.

    The published 2.0 counts the scores alone over K and V. Queries and output add 2 x 32 x 128 elements to
    2 x 8 x 128 x 512 of the cache: 1 / 128 more bytes.
    """
    chart = attention_case(paper, MIXTRAL, FP16, context_len=512)
    fp16, int4 = chart.lines
    assert fp16.intensity == pytest.approx(4 / (1 + 1 / 128), rel=1e-3)
    assert int4.intensity > 3 * fp16.intensity
    assert fp16.in_place_flops_per_s == pytest.approx(100e9 * fp16.intensity)
    assert fp16.streamed_flops_per_s == pytest.approx(16e9 * fp16.intensity)
    assert chart.p1 is not None and chart.p1.intensity == pytest.approx(81.25)


def test_own_kv_format_is_drawn_once() -> None:
    chart = attention_case(load_profile("l4"), MIXTRAL, replace(FP16, kv_cache="int4"), context_len=512)
    assert [line.label for line in chart.lines] == ["int4 KV"]


def test_measured_roofs_are_peak_times_efficiency() -> None:
    """L4: 45.3 of 100 GB/s for attention on the CPU, 12.32 GB/s over the link (profile l4.yaml)."""
    roofs = {r.label: r for r in machine_roofs(load_profile("l4"), FP16, "attention")}
    assert roofs["CPU memory"].peak == pytest.approx(100e9)
    assert roofs["CPU memory"].achieved == pytest.approx(45.3e9)
    assert roofs["CPU-GPU link"].value == pytest.approx(12.32e9)
    assert roofs["GPU memory"].achieved is None and roofs["GPU memory"].value == pytest.approx(300e9)


def test_all_devices_sum_their_roofs_but_not_the_cpu() -> None:
    one, four = (
        {(r.level, r.is_compute): r for r in machine_roofs(load_profile("t4x4"), FP16, "linear", n)} for n in (1, 4)
    )
    for key in (("gpu", True), ("gpu", False), ("htod", False)):
        assert four[key].value == pytest.approx(4 * one[key].value)
        assert four[key].label == f"{one[key].label} (x4)"
    assert four["cpu", False].value == one["cpu", False].value


def test_a_chart_without_a_link_cannot_have_turning_points() -> None:
    with pytest.raises(RooflineError, match="no roof for"):
        gpu_over_link((Roof("GPU fp16", "gpu", True, 1e12),))


ROOFS = (Roof("GPU fp16", "gpu", True, 100e12), Roof("GPU memory", "gpu", False, 1e12, achieved=0.8e12))


def test_attainable_is_the_lowest_roof() -> None:
    """min(10, 2 * 3, 0.5 * 4) = 2 over the link; 1 * 4 = 4 at the far level."""
    pair = HierarchicalRoofline(LevelRoof("gpu", 10.0, 2.0), LevelRoof("cpu", 5.0, 1.0), 0.5)
    assert float(pair.attainable(3.0, 4.0)) == 2.0
    assert float(pair.far.attainable(4.0)) == 4.0
    assert pair.near.ridge_point == 5.0
    with pytest.raises(RooflineError, match="above its roof"):
        check_below_roof("x", 2.0, 1.0)


def test_best_level_changes_at_p1(paper: HardwareProfile) -> None:
    hierarchy = ffn_case(paper, MIXTRAL, FP16, 128).hierarchy
    assert hierarchy is not None
    assert hierarchy.best_level(31.95, 80.0, 80.0) == "cpu"
    assert hierarchy.best_level(31.95, 82.0, 82.0) == "gpu"


def test_point_names_its_binding_roof_and_gap() -> None:
    """10 flops/byte x 0.8e12 bytes/s = 8e12 flop/s attainable; 2e12 achieved is 4 times below."""
    point = place_operator("experts", "gpu", 2e12, {"gpu": 10.0}, 0.5, ROOFS, "expert_ffn")
    assert point.binding == "GPU memory"
    assert point.gap == pytest.approx(4.0)
    assert point.attainable_flops_per_s == pytest.approx(8e12)


def test_point_above_its_measured_roof_is_an_error() -> None:
    with pytest.raises(RooflineError, match=r"experts under GPU memory.*above its roof"):
        place_operator("experts", "gpu", 9e12, {"gpu": 10.0}, 0.5, ROOFS, "expert_ffn")
    with pytest.raises(RooflineError, match="no roof for cpu"):
        place_operator("experts", "cpu", 1.0, {}, 0.5, ROOFS, "expert_ffn")


@pytest.mark.parametrize("schedule", ["auto", "cgopipe", "flexgen", "module_batched", "expert_cache"])
def test_policy_points_share_out_the_pass(t4_rates: Rates, schedule: str) -> None:
    """Busy shares of each processor agree with the prediction, and no operator lies above its roof."""
    policy = search_policy(t4_rates, schedule).policy
    points, prediction = policy_points(t4_rates, policy), predict(t4_rates, policy)
    longest = max(prediction.passes, key=lambda p: p.count * p.seconds)
    for processor in ("gpu", "cpu"):
        share = sum(p.share for p in points if p.processor == processor)
        assert share == pytest.approx(longest.busy_seconds[processor] / longest.seconds, abs=0.02)
    assert all(p.gap >= 1 - 1e-9 for p in points)


def test_streamed_experts_lie_on_the_link_roof(t4_rates: Rates) -> None:
    """cgopipe on a T4 is bound by the link; experts are nearly all that crosses it."""
    policy = search_policy(t4_rates, "cgopipe").policy
    experts = next(p for p in policy_points(t4_rates, policy) if p.label == "experts")
    streamed = (policy.experts_on_gpu - policy.weights_on_gpu) * t4_rates.sizes.expert_bytes
    over_link = next(level.intensity for level in experts.levels if level.level == "htod")
    bytes_per_s = experts.flops_per_s / over_link
    assert bytes_per_s <= 13.84e9 * (1 + 1e-9)
    longest = max(predict(t4_rates, policy).passes, key=lambda p: p.count * p.seconds)
    assert bytes_per_s == pytest.approx(streamed / longest.seconds)
    assert experts.binding == "CPU-GPU link" and experts.gap < 1.2


def test_roofline_draws_every_roof_operator_and_turning_point(t4_rates: Rates) -> None:
    policy = search_policy(t4_rates).policy
    for chart in policy_panels(t4_rates, policy):
        ax = axes()
        assert plot_roofline(chart, ax) is ax
        for roof in chart.roofs:
            assert roof.label in texts(ax)
            assert f"{roof.label}, {'datasheet' if roof.achieved is None else 'measured'}" in labels(ax)
        for op in chart.operators:
            assert op.label in texts(ax)
        assert "P1 = " in texts(ax)
        assert ax.get_xscale() == ax.get_yscale() == "log"


def test_marker_area_grows_with_the_share_of_time() -> None:
    busy, idle = (
        place_operator(name, "gpu", 1e12, {"gpu": 10.0}, share, ROOFS, "linear")
        for name, share in (("busy", 0.9), ("idle", 0.1))
    )
    roofs = (*ROOFS, Roof("CPU fp32", "cpu", True, 1e12), Roof("CPU memory", "cpu", False, 1e11))
    ax = plot_roofline(Chart("two operators", roofs, operators=(busy, idle)), axes())
    areas = {c.get_label(): float(c.get_sizes()[0]) for c in ax.collections}
    assert areas["busy at gpu"] > 3 * areas["idle at gpu"]


def text_boxes(figure: Figure) -> list[tuple[str, np.ndarray]]:  # type: ignore[type-arg]
    """Level texts of every axes with their boxes on the page, shrunk by a pixel."""
    figure.draw_without_rendering()
    found = []
    for ax in figure.axes:
        for text in ax.texts:
            if text.get_text() and text.get_rotation() == 0:
                box = text.get_window_extent()
                found.append((text.get_text(), np.array([box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1])))
    return found


@pytest.mark.parametrize("profile", ["t4", "l4", "a100-80gb", "h100-80gb", "rtx4090", "t4x4"])
@pytest.mark.parametrize("model", ["mixtral-8x7b", "llama-3-8b", "deepseek-v3"])
def test_texts_of_a_case_study_do_not_overlap(profile: str, model: str) -> None:
    figure = case_study_figure(load_profile(profile), load_model(model))
    boxes = text_boxes(figure)
    assert len(boxes) >= 6
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[:i]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"{one!r} covers {other!r}"


@pytest.mark.parametrize("profile", shipped_profiles())
def test_every_shipped_profile_has_a_case_study_chart(profile: str) -> None:
    machine = load_profile(profile)
    for name in ("mixtral-8x7b", "llama-3-8b", "deepseek-v3", "gpt-oss-120b"):
        model = load_model(name)
        precision = choose_precision(model, machine)
        charts = (attention_case(machine, model, precision, 512), ffn_case(machine, model, precision, 128))
        for chart in charts:
            assert all(math.isfinite(line.intensity) and line.flops_per_s > 0 for line in chart.lines)


@pytest.mark.parametrize(
    ("profile", "model"),
    [("rtx4090", "llama-3-8b"), ("h100-80gb-x8", "deepseek-v3"), ("mi300x", "gpt-oss-20b"), ("t4x4", "mixtral-8x7b")],
)
def test_roofline_figure_searches_when_no_policy_is_given(profile: str, model: str) -> None:
    """Dense, MLA, native MXFP4 and tensor-parallel cases."""
    figure = roofline_figure(make_rates(load_profile(profile), load_model(model), load_workload("mtbench")))
    assert len(figure.axes) == 2 and figure.legends
    assert all(f"{model} on {profile}" in ax.get_title(loc="left") for ax in figure.axes)
    assert "busy" in texts(figure.axes[0])


def test_trajectory_climbs_the_link_until_the_gpu_binds(paper: HardwareProfile) -> None:
    """mu = 128 throughout: 16e9 * N / 4 flop/s up to P2, then 300e9 * 31.95."""
    trajectory = ffn_trajectory(paper, MIXTRAL, FP16, ((128, 128), (1024, 128), (16384, 128)))
    rates = [step.flops_per_s for step in trajectory.steps]
    assert rates == pytest.approx([16e9 * 32, 16e9 * 256, 300e9 * 31.95], rel=0.02)
    ax = axes()
    assert plot_trajectory(trajectory, ax) is ax
    assert {"path at htod", "path at gpu"} <= set(labels(ax))
    assert "N = 1,024, mu = 128" in texts(ax)


def test_heatmap_holds_the_optimum_and_nothing_better(t4_rates: Rates) -> None:
    result = search_policy(t4_rates)
    heatmap = policy_heatmap(result, points=8)
    mu, n, best = heatmap.best
    row, column = list(heatmap.batch_sizes).index(n), list(heatmap.micro_batch_sizes).index(mu)
    assert heatmap.throughput[row, column] == pytest.approx(best, rel=1e-6)
    assert np.nanmax(heatmap.throughput) <= best * (1 + 1e-9)
    above = heatmap.micro_batch_sizes[None, :] > heatmap.batch_sizes[:, None]
    assert np.array_equal(np.isnan(heatmap.throughput), above)
    assert np.isneginf(heatmap.throughput[heatmap.batch_sizes > 2 * n, 0]).all()  # CPU memory is full at the optimum


def test_heatmap_marks_what_does_not_fit() -> None:
    sizes = np.array([1, 10, 100])
    throughput = np.array([[5.0, np.nan, np.nan], [6.0, 7.0, np.nan], [-np.inf, -np.inf, -np.inf]])
    ax = axes()
    assert plot_policy_heatmap(Heatmap("test", sizes, sizes, throughput, (10, 10, 7.0)), ax) is ax
    assert {"throughput", "does not fit", "optimum"} <= set(labels(ax))
    assert "optimum: 7 tokens/s" in texts(ax) and "does not fit in memory" in texts(ax)


def test_memory_sweep_names_every_schedule(t4_rates: Rates) -> None:
    axis = parse_axis("cpu_memory=60GiB,128GiB,192GiB")
    tables = {name: sweep(t4_rates, [axis], name) for name in ("cgopipe", "flexgen")}
    nowhere = pd.DataFrame({"cpu_memory": [1.0], "feasible": [False], "reason": ["too small"]})
    ax = axes()
    assert plot_memory_sweep({**tables, "nothing": nowhere}, ax) is ax
    assert labels(ax) == ["cgopipe", "flexgen"]
    assert "cgopipe" in texts(ax) and "fits nowhere: nothing" in texts(ax)
    for line, table in zip(ax.lines, tables.values(), strict=True):
        assert np.isnan(line.get_ydata()).tolist() == (~table["feasible"]).tolist()


def test_memory_sweep_refuses_other_fields(t4_rates: Rates) -> None:
    with pytest.raises(HrmError, match="no memory"):
        plot_memory_sweep({"cgopipe": pd.DataFrame()}, axes(), field="htod")
    with pytest.raises(HrmError, match="give 1 to 10"):
        plot_memory_sweep({}, axes())


def test_policy_regions_map_faster_machines(t4_rates: Rates) -> None:
    table = policy_regions(t4_rates, cpu_factors=(0.25, 1.0), htod_factors=(1.0, 4.0))
    at = {(row.cpu_factor, row.htod_factor): row for row in table.itertuples()}
    assert at[0.25, 4.0].attention_on_gpu > at[1.0, 1.0].attention_on_gpu  # a slow CPU and a fast link pull it over
    for better, worse in (((1.0, 1.0), (0.25, 1.0)), ((1.0, 4.0), (1.0, 1.0))):
        assert at[better].generation_throughput >= at[worse].generation_throughput * (1 - 1e-9)
    ax = axes()
    assert plot_policy_regions(table, ax) is ax
    assert labels(ax) == ["attention_on_gpu"] and len(ax.texts) == 4
    assert ax.get_xlabel() == "CPU: memory bandwidth and compute"


def test_policy_regions_show_what_does_not_fit() -> None:
    table = pd.DataFrame({"cpu_factor": [1.0, 2.0], "htod_factor": [1.0, 1.0], "kv_on_gpu": [np.nan, 0.5]})
    ax = plot_policy_regions(table, axes(), value="kv_on_gpu")
    assert [text.get_text() for text in ax.texts] == ["does\nnot fit", "50%"]
    with pytest.raises(HrmError, match="no column 'speed'"):
        plot_policy_regions(table, axes(), value="speed")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_written(tmp_path: Path, suffix: str) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    path = tmp_path / f"figure.{suffix}"
    save_figure(Figure(figsize=(2, 2)), path)
    assert path.read_bytes().startswith(starts[suffix])


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.PNG2", "no/such/folder/figure.png"])
def test_figures_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(HrmError, match=r"cannot (write|be written)"):
        save_figure(Figure(figsize=(2, 2)), tmp_path / name)
    with pytest.raises(HrmError, match="cannot be written"):
        (tmp_path / "folder.png").mkdir()
        save_figure(Figure(figsize=(2, 2)), tmp_path / "folder.png")


def test_page_positions_are_logarithmic() -> None:
    ax = axes()
    ax.set(xscale="log", yscale="log", xlim=(1, 100), ylim=(1, 100))
    (x0, y0), (x1, y1), (x2, y2) = (to_page(ax, v, v) for v in (1, 10, 100))
    assert (x0, y0) == pytest.approx((0, 0), abs=1e-6)
    assert (2 * x1, 2 * y1) == pytest.approx((x2, y2))

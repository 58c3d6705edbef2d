"""Chart data against hand-computed values; plots return the axes they are given and draw what they name."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib.figure import Figure

from hrm.errors import HrmError, RooflineError
from hrm.plotting.figures import case_study_figure, roofline_figure, save_figure
from hrm.plotting.memory_sweep import plot_memory_sweep
from hrm.plotting.policy_heatmap import plot_policy_heatmap
from hrm.plotting.policy_regions import plot_policy_regions
from hrm.plotting.roofline import plot_roofline
from hrm.predict.operator_points import policy_chart
from hrm.roofline.case_study import attention_case, ffn_case, ffn_trajectory
from hrm.roofline.chart import Chart, Roof, place_operator
from hrm.roofline.roofs import HierarchicalRoofline, LevelRoof, check_below_roof
from hrm.search.heatmap import policy_heatmap
from hrm.search.search import SearchResult, make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.precision import Precision
from hrm.spec.workload_file import load_workload

FP16 = Precision("fp16", "fp16", "fp16", "fp16")


@pytest.fixture(scope="module")
def result() -> SearchResult:
    """A search whose batch is limited by CPU memory."""
    rates = make_rates(load_profile("t4"), load_model("mixtral-8x7b"), load_workload("summarization"))
    return search_policy(rates, "cgopipe")


def test_turning_points_of_the_published_case_study() -> None:
    """MoE-Lightning's roofline constants: P1 = 1.3e12 / 16e9 = 81.25; P2 = 300e9 * 31.95 / 16e9 = 599."""
    published = HierarchicalRoofline(LevelRoof("gpu", 242e12, 300e9), LevelRoof("cpu", 1.3e12, 100e9), 16e9)
    assert published.turning_point_p1 == pytest.approx(81.25)
    assert published.turning_point_p2(31.95) == pytest.approx(599, rel=1e-3)
    assert published.balance_far_intensity(31.95) == pytest.approx(published.turning_point_p2(31.95))
    assert published.best_level(31.95, 50.0, 50.0) == "cpu"
    assert published.best_level(31.95, 100.0, 100.0) == "gpu"


def test_attainable_is_the_lowest_roof() -> None:
    """min(10, 2 * 3, 0.5 * 4) = 2 over the link; 1 * 4 = 4 at the far level."""
    pair = HierarchicalRoofline(LevelRoof("gpu", 10.0, 2.0), LevelRoof("cpu", 5.0, 1.0), 0.5)
    assert float(pair.attainable(3.0, 4.0)) == 2.0
    assert float(pair.far.attainable(4.0)) == 4.0
    assert pair.near.ridge_point == 5.0


def test_ffn_case_counts_weights_once_per_batch_over_the_link() -> None:
    """Mixtral in fp16: N * 2 of 8 experts, 2 flops per weight of 2 bytes: N / 4 flops per byte once all are touched."""
    chart = ffn_case(load_profile("l4"), load_model("mixtral-8x7b"), FP16, 128, (128, 1024))
    assert [line.intensity for line in chart.lines] == pytest.approx([32.0, 256.0], rel=1e-6)
    assert chart.kernel is not None
    assert chart.kernel.intensity == pytest.approx(31.7, rel=1e-2)  # activations lower it from 32
    assert chart.p1 is not None


def test_attention_intensity() -> None:
    """Four query heads share a KV head: 2 flops per KV element of 2 bytes and head, so 4 flops per byte."""
    chart = attention_case(load_profile("l4"), load_model("mixtral-8x7b"), FP16, 512, ("fp16", "int4"))
    assert chart.lines[0].intensity == pytest.approx(4.0, rel=0.01)
    assert chart.lines[1].intensity == pytest.approx(4.0 * 2 / (0.5 + 2 / 128), rel=0.04)


def test_a_point_above_its_roof_raises() -> None:
    roofs = (Roof("GPU", "gpu", True, 100.0), Roof("GPU memory", "gpu", False, 10.0), Roof("link", "htod", False, 1.0))
    placed = place_operator("ffn", "gpu", 5.0, {"gpu": 2.0, "htod": 8.0}, 0.5, roofs)
    assert (placed.binding, placed.gap) == ("link", pytest.approx(1.6))
    with pytest.raises(RooflineError, match="ffn under link"):
        place_operator("ffn", "gpu", 9.0, {"gpu": 2.0, "htod": 8.0}, 0.5, roofs)
    with pytest.raises(RooflineError, match="above its roof"):
        check_below_roof("x", 2.0, 1.0)
    with pytest.raises(RooflineError, match="no roof"):
        place_operator("ffn", "tpu", 1.0, {}, 0.5, roofs)


def test_policy_points_lie_on_the_bottleneck() -> None:
    rates = make_rates(load_profile("t4"), load_model("mixtral-8x7b"), load_workload("mtbench"))
    best = search_policy(rates, "cgopipe")
    chart = policy_chart(rates, best.policy)
    experts = next(op for op in chart.operators if op.label == "experts")
    assert best.prediction.bottleneck == "htod"
    assert experts.binding == "CPU-GPU link"
    assert 1.0 <= experts.gap < 1.1, "only hidden states and latency separate experts from the link's roof"
    assert all(op.gap >= 1 - 1e-9 and 0 <= op.share <= 1 + 1e-9 for op in chart.operators)


def texts(ax: object) -> str:
    """All text that axes show."""
    return " ".join(t.get_text() for t in ax.texts)  # type: ignore[attr-defined]


def test_plot_roofline_draws_and_labels(result: SearchResult) -> None:
    ax = Figure().add_subplot()
    profile, model = load_profile("l4"), load_model("mixtral-8x7b")
    chart = ffn_case(profile, model, FP16, 128)
    chart = replace(chart, trajectory=ffn_trajectory(profile, model, FP16, [(32, 32), (1024, 128)]))
    assert plot_roofline(chart, ax) is ax
    for text in ("GPU memory", "CPU memory", "CPU-GPU link", "P1", "P2", "N = 1,024", "GPU at mu = 128", "N=32 mu=32"):
        assert text in texts(ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    styles = {line.get_linestyle() for line in ax.get_lines()}
    assert {"-", "--"} <= styles, "datasheet roofs dashed, measured solid"


def test_heatmap_marks_the_optimum_and_what_does_not_fit(result: SearchResult) -> None:
    ax = Figure().add_subplot()
    heatmap = policy_heatmap(result, points=8)
    finite = heatmap.throughput[np.isfinite(heatmap.throughput)]
    assert finite.max() <= result.prediction.generation_throughput * (1 + 1e-9)
    assert np.isneginf(heatmap.throughput).any()
    assert plot_policy_heatmap(heatmap, ax) is ax
    assert "does not fit" in texts(ax)
    assert f"N = {result.policy.batch_size:,}" in texts(ax)


def test_sweep_plots() -> None:
    table = pd.DataFrame(
        {"cpu_memory": [2.0**36, 2.0**37], "feasible": [True, True], "generation_throughput": [1.0, 2.0]}
    )
    ax = Figure().add_subplot()
    assert plot_memory_sweep({"a": table, "b": table.assign(feasible=False)}, ax) is ax
    assert "a" in texts(ax)
    grid = pd.DataFrame({"x_factor": [1, 2, 1, 2], "y_factor": [1, 1, 2, 2], "weights_on_gpu": [0.1, 0.2, 0.3, 0.4]})
    ax = Figure().add_subplot()
    assert plot_policy_regions(grid, ax, "x_factor", "y_factor", "weights_on_gpu") is ax
    assert "0.40" in texts(ax)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_written(tmp_path: Path, suffix: str, result: SearchResult) -> None:
    path = tmp_path / f"figure{suffix}"
    save_figure(roofline_figure(result.rates, result.policy), path)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("profile", "model"),
    [("t4", "mixtral-8x7b"), ("h100-80gb-x8", "deepseek-v3"), ("rtx4090", "llama-3-8b"), ("mi300x", "gpt-oss-20b")],
)
def test_case_study_of_other_machines(profile: str, model: str) -> None:
    figure = case_study_figure(load_profile(profile), load_model(model))
    assert len(figure.axes) == 2


def test_unwritable_figures(tmp_path: Path) -> None:
    with pytest.raises(HrmError, match=r"\.png, \.svg, \.pdf"):
        save_figure(Figure(), tmp_path / "figure.gif")
    with pytest.raises(HrmError, match="cannot be written"):
        save_figure(Figure(), tmp_path / "nowhere" / "figure.png")


def test_roofs_alone_make_a_chart() -> None:
    chart = Chart("roofs only", (Roof("GPU", "gpu", True, 1e13), Roof("GPU memory", "gpu", False, 1e11)))
    ax = Figure().add_subplot()
    assert "GPU memory" in texts(plot_roofline(chart, ax))

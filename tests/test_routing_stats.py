"""Statistics of routing traces by hand and against brute force; token ids and predictions in files; `hrm routing`."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from typer.testing import CliRunner

from hrm.cli.main import app
from hrm.cli.routing import parse_batches
from hrm.errors import HrmError, WorkloadError
from hrm.plotting.routing_figures import routing_figures
from hrm.predict.cache_replay import true_predictions
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing import inclusion_probabilities
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_demand import choice_frequency, first_prompts, pass_demand
from hrm.predict.routing_hit_rates import cache_sizes, hit_rates
from hrm.predict.routing_predictions import load_predictions, save_predictions
from hrm.predict.routing_reuse import distinct_experts, reuse_distance
from hrm.predict.routing_skew import fit_zipf, layer_skew, zipf_shares
from hrm.predict.routing_stats import routing_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace, save_routing_trace
from hrm.spec.model_config import load_model

matplotlib.use("Agg")
EXPERTS, LAYERS, TOP_K = 8, 3, 2


def make_trace(prompts: int = 6, steps: int = 8, seed: int = 0, exponent: float = 1.0) -> RoutingTrace:
    """Popularity ~ rank^-exponent, two prefill tokens per prompt; prompts end early, each a step later."""
    rng = np.random.default_rng(seed)
    lengths = [2 + steps - (prompts - 1 - i) % 3 for i in range(prompts)]
    popularity = np.arange(1, EXPERTS + 1.0) ** -exponent
    clocks = rng.exponential(size=(sum(lengths), LAYERS, EXPERTS)) / popularity
    experts = np.argsort(clocks, axis=-1)[..., :TOP_K].astype(np.int16)
    step = np.concatenate([np.maximum(np.arange(n) - 1, 0) for n in lengths])
    prompt = np.repeat(np.arange(prompts), lengths)
    return RoutingTrace("tiny", EXPERTS, experts, prompt, step, None, rng.integers(0, 100, len(step)))


TRACE = make_trace()


def top_1(*passes: int) -> RoutingTrace:
    """One prompt, one layer, one expert of four per decode step."""
    count = len(passes)
    return RoutingTrace("tiny", 4, np.array(passes).reshape(-1, 1, 1), np.zeros(count, int), np.arange(1, count + 1))


# --- statistics ---


def test_skew_by_hand() -> None:
    skew = layer_skew(np.array([0.1, 0.6, 0.1, 0.2]))
    assert (skew.hottest, skew.peak) == (1, pytest.approx(2.4))
    assert skew.top == pytest.approx((0.4 * 0.6, 0.6, 0.8))  # 10 % of 4 experts is 0.4 of the hottest
    assert skew.entropy == pytest.approx(-(0.6 * math.log(0.6) + 0.2 * math.log(0.2 * 0.1)) / math.log(4))
    even = layer_skew(np.full(8, 0.25))
    assert (even.entropy, even.zipf_exponent, even.zipf_misfit) == (pytest.approx(1), 0.0, pytest.approx(0))
    assert even.top == pytest.approx((0.1, 0.25, 0.5))


@pytest.mark.parametrize(("experts", "top_k", "exponent"), [(8, 1, 0.7), (32, 2, 1.2), (64, 8, 0.4), (8, 2, 3.0)])
def test_zipf_fit_finds_the_exponent(experts: int, top_k: int, exponent: float) -> None:
    found, misfit = fit_zipf(zipf_shares(experts, top_k, exponent), top_k)
    assert found == pytest.approx(exponent, abs=2e-3) and misfit < 1e-3


def test_zipf_fit_of_what_is_no_zipf_law() -> None:
    assert fit_zipf(np.array([0.5, 0.5, 0.0, 0.0]), 2)[1] > 0.0
    two_kinds = np.r_[np.full(8, 0.1), np.full(24, 0.2 / 24)]
    assert fit_zipf(two_kinds, 2)[1] > 0.1
    assert fit_zipf(np.ones(1), 1) == (0.0, 0.0)


def test_frequencies_are_those_of_the_draw() -> None:
    trace = make_trace(prompts=200, steps=20)
    wanted = inclusion_probabilities(EXPERTS, TOP_K, 1.0)
    np.testing.assert_allclose(choice_frequency(trace.experts, EXPERTS).mean(axis=0), wanted, atol=0.03)


def test_distinct_experts_against_brute_force() -> None:
    for batch in (1, 2, 3, 6):
        demand, sets = pass_demand(TRACE, batch), dict[tuple[int, int], list[set[int]]]()
        for row in np.flatnonzero(TRACE.step > 0):
            place = int(TRACE.prompt[row]) // batch, int(TRACE.step[row])
            layers = sets.setdefault(place, [set() for _ in range(LAYERS)])
            for layer in range(LAYERS):
                layers[layer] |= set(TRACE.experts[row, layer].tolist())
        found = distinct_experts(demand, TOP_K)
        brute = np.mean([[len(layer) for layer in each] for each in sets.values()], axis=0)
        assert found.measured == pytest.approx(tuple(brute))
        assert found.tokens == pytest.approx((TRACE.step > 0).sum() / len(sets))


def test_formulas_of_distinct_experts() -> None:
    trace = make_trace(prompts=128, steps=30)
    one, eight = (distinct_experts(pass_demand(trace, b), TOP_K) for b in (1, 8))
    for of_one_token in (one.measured, one.independent):
        assert of_one_token == pytest.approx((2.0,) * LAYERS)
    assert one.uniform == pytest.approx(2.0)
    assert np.mean(eight.measured) == pytest.approx(np.mean(eight.independent), abs=0.05)  # the draw is independent
    assert eight.uniform > np.mean(eight.independent) + 0.5  # and skewed


def test_reuse_distance_by_hand() -> None:
    reuse = reuse_distance(pass_demand(top_1(0, 0, 1, 0, 2, 1), 1))  # gaps: 0 after 1 and 2 passes, 1 after 3
    assert reuse.distances == (1, 2, 4)
    assert reuse.within == pytest.approx((1 / 3, 2 / 3, 1))
    assert reuse.first == pytest.approx(3 / 6)
    chosen = np.array([3, 2, 1]) / 6
    assert reuse.independent[1] == pytest.approx((chosen * (1 - (1 - chosen) ** 2)).sum())
    never = reuse_distance(pass_demand(top_1(0, 1, 2), 1))
    assert never.within == (0.0, 0.0) and never.first == 1.0


def test_hit_rates_of_a_cycle() -> None:
    found = {h.policy: h.hit_rate for h in hit_rates(top_1(0, 1, 2, 0, 1, 2, 0), (1,), None, lambda a, b: None)}
    assert cache_sizes(top_1(0, 1)) == (1, 2, 3, 4)
    assert found["lru"] == pytest.approx((0, 0, 4 / 6, 4 / 6))
    assert found["belady"][3] == 1.0 and found["static"][2] == 1.0
    assert "predictive" not in found


def test_oracle_predictions_hit_everything_and_policies_rise_with_the_cache() -> None:
    found = hit_rates(TRACE, (2, 3), true_predictions(TRACE), lambda a, b: None)
    assert [(h.policy, h.batch_size) for h in found][4:6] == [("predictive", 2), ("lru", 3)]
    for each in found:
        assert all(0 <= rate <= 1 for rate in each.hit_rate)
        if each.policy == "predictive":
            assert each.hit_rate[-1] == 1.0
        else:
            assert list(each.hit_rate) == sorted(each.hit_rate)


def test_a_slow_link_brings_fewer_prefetches_in_time() -> None:
    truth, rates = true_predictions(TRACE), []
    for fetches in (0.0, 1.0, None):
        found = hit_rates(TRACE, (3,), truth, lambda a, b: None, fetches)
        rates.append(next(h.hit_rate[2] for h in found if h.policy == "predictive"))
    assert rates[0] < rates[1] < rates[2]


def test_batches_that_do_not_fit_are_left_out_by_default_and_refused_by_name() -> None:
    stats = routing_stats(TRACE)
    assert [r.batch_size for r in stats.reuse] == [1, 4]
    assert [d.batch_size for d in stats.distinct] == [1, 2, 4]
    with pytest.raises(WorkloadError, match="6 prompts with decode steps, a batch 7"):
        routing_stats(TRACE, (7,))
    with pytest.raises(WorkloadError, match="no decode step"):
        routing_stats(replace(TRACE, step=np.zeros_like(TRACE.step)))


def test_first_prompts() -> None:
    cut, kept = first_prompts(TRACE, 2)
    check_trace(cut, None)
    assert set(cut.prompt.tolist()) == {0, 1} and kept.sum() == len(cut.prompt)
    assert cut.tokens is not None and cut.gate_weights is None
    for wrong in (0, 7):
        with pytest.raises(WorkloadError, match=f"{wrong} prompts asked for; the trace has 6"):
            first_prompts(TRACE, wrong)


# --- files ---


def test_token_ids_survive_a_file(tmp_path: Path) -> None:
    save_routing_trace(TRACE, tmp_path / "trace.npz")
    read = load_routing_trace(tmp_path / "trace.npz", None)
    assert read.tokens is not None and TRACE.tokens is not None and read.gate_weights is None
    np.testing.assert_array_equal(read.tokens, TRACE.tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros(3, int)}, "tokens must be 54 integers"),
        ({"tokens": np.zeros(54)}, "tokens must be 54 integers"),
        ({"tokens": np.full(54, -1)}, "token 0: negative id -1"),
        ({"step": TRACE.step[::-1], "prompt": TRACE.prompt[::-1]}, "comes after a later one"),
        ({"num_experts": 1}, "2 of 1 experts"),
        ({"num_experts": 10**12}, "at most 65,536 experts"),
        ({"experts": TRACE.experts[:, :0]}, "0 layers"),
    ],
)
def test_traces_that_are_refused_without_a_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_trace(replace(TRACE, **changes), None)


def test_without_token_ids_rows_may_be_in_any_order() -> None:
    check_trace(replace(TRACE, step=TRACE.step[::-1], prompt=TRACE.prompt[::-1], tokens=None), None)


def probabilities_of() -> np.ndarray:
    return np.random.default_rng(0).random((len(TRACE.prompt), LAYERS, EXPERTS))


def test_predictions_fit_their_trace_alone(tmp_path: Path) -> None:
    path, probabilities = tmp_path / "predictions.npz", probabilities_of()
    for following in (None, 1 - probabilities):
        save_predictions(PathPredictions(probabilities, following), TRACE, path)
        read = load_predictions(path, replace(TRACE, experts=TRACE.experts.astype(np.int64)))
        assert read.now.dtype == np.float16
        np.testing.assert_array_equal(read.now, probabilities.astype(np.float16))
        assert (read.following is None) == (following is None)
    np.testing.assert_array_equal(read.following, (1 - probabilities).astype(np.float16))
    with pytest.raises(WorkloadError, match="for another trace of tiny"):
        load_predictions(path, make_trace(seed=1))
    with pytest.raises(WorkloadError, match="for model 'tiny', the trace is of other"):
        load_predictions(path, replace(TRACE, model="other"))
    save_routing_trace(TRACE, path)
    with pytest.raises(WorkloadError, match="predictions hold probabilities, model, trace"):
        load_predictions(path, TRACE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (probabilities_of()[1:], "must be floats"),
        (probabilities_of() > 0.5, "must be floats"),
        (probabilities_of() + 1, r"outside \[0, 1\]"),
        (np.full_like(probabilities_of(), math.nan), r"outside \[0, 1\]"),
    ],
)
def test_predictions_that_are_refused(tmp_path: Path, wrong: np.ndarray, message: str) -> None:
    for refused in (PathPredictions(wrong), PathPredictions(probabilities_of(), wrong)):
        with pytest.raises(WorkloadError, match=message):
            save_predictions(refused, TRACE, tmp_path / "predictions.npz")


# --- figures and the command ---


def test_figures_draw_what_they_are_given(tmp_path: Path) -> None:
    stats = routing_stats(TRACE, (1, 2), true_predictions(TRACE))
    figures = dict(routing_figures(stats))
    assert list(figures) == [
        f"routing_{n}" for n in ("heatmap", "skew", "distinct_experts", "reuse_distance", "hit_rates")
    ]
    mesh = figures["routing_heatmap"].axes[0].collections[0]
    np.testing.assert_allclose(mesh.get_array(), stats.frequency * EXPERTS / TOP_K)
    for panel, batch in zip(figures["routing_hit_rates"].axes, (1, 2), strict=True):
        lines = {line.get_label(): line for line in panel.lines}
        assert len(lines) == 5 and panel.get_title(loc="left") == f"batch {batch}"
        wanted = next(h for h in stats.hits if (h.policy, h.batch_size) == ("lfu", batch))
        np.testing.assert_allclose(lines["LFU"].get_ydata(), wanted.hit_rate)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_routing_trace(TRACE, tmp_path / "trace.npz")
    return tmp_path / "trace.npz"


def test_command(path: Path, tmp_path: Path) -> None:
    save_predictions(true_predictions(TRACE), TRACE, tmp_path / "p.npz")
    options = ["routing", str(path), "--predictions", str(tmp_path / "p.npz"), "--batches", "3,1", "--prompts", "5"]
    table = CliRunner().invoke(app, [*options, "--plot", str(tmp_path / "a" / "b")], catch_exceptions=False)
    assert table.exit_code == 0 and "2 of 8 experts in 3 MoE layers" in table.output
    assert "Hit rate against cache size, batch 3" in table.output and "predictive" in table.output
    assert sum(1 for _ in (tmp_path / "a" / "b").glob("*.png")) == 5
    report = json.loads(CliRunner().invoke(app, [*options, "--json"], catch_exceptions=False).stdout)
    assert report["prompts"] == 5 and [r["batch_size"] for r in report["reuse_distance"]] == [1, 3]
    assert {h["policy"] for h in report["hit_rates"]} == {"lru", "lfu", "static", "belady", "predictive"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batches", "1,x"], "give whole numbers from 1 on"),
        (["--batches", "99"], "a batch 99"),
        (["--model", "mixtral-8x7b"], "recorded of model 'tiny', not mixtral-8x7b"),
        (["--fetches-per-layer", "2"], "give --predictions too"),
        (["--prompts", "9"], "9 prompts asked for"),
        (["--predictions", "absent.npz"], "absent.npz: cannot be read"),
    ],
)
def test_command_refuses_in_one_line(path: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["routing", str(path), *options])
    assert isinstance(done.exception, HrmError) and message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_folder_that_cannot_be_made(path: Path) -> None:
    done = CliRunner().invoke(app, ["routing", str(path), "--plot", str(path / "plots")])
    assert isinstance(done.exception, HrmError) and "cannot be made" in str(done.exception)


def test_batch_sizes() -> None:
    assert parse_batches(" 4, 1,4") == (1, 4)
    for wrong in ("", "0", "-1", "1,,2", "1.5", "9" * 5000):
        with pytest.raises(HrmError, match="--batches"):
            parse_batches(wrong)


def test_a_trace_of_a_shipped_model_is_checked_against_it(path: Path) -> None:
    mixtral = load_model("mixtral-8x7b")
    experts = np.argsort(np.random.default_rng(0).random((8, mixtral.num_moe_layers, 8)), axis=-1)[..., :2]
    trace = RoutingTrace(mixtral.name, 8, experts, np.repeat([0, 1], 4), np.tile(np.arange(4), 2))
    save_routing_trace(trace, path)
    done = CliRunner().invoke(app, ["routing", str(path), "--model", "mixtral-8x7b"], catch_exceptions=False)
    assert done.exit_code == 0 and "32 MoE layers" in done.output

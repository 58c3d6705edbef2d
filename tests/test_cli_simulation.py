"""`hrm simulate`, `compare`, `published` and `search --refine` as a user meets them."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import Invoke

T4 = ("--profile", "t4.yaml")
FAST = (*T4, "--gen-len", "8")


@pytest.fixture
def policy(hrm: Invoke, tmp_path: Path) -> Path:
    """The best CGOPipe policy on the T4."""
    path = tmp_path / "policy.yaml"
    assert hrm("search", *FAST, "--schedule", "cgopipe", "--json", "--output", str(path))[0] == 0
    return path


def test_simulate_reports_the_stated_fields(hrm: Invoke, policy: Path) -> None:
    code, out, err = hrm("simulate", *FAST, "--policy", str(policy), "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert set(report) >= {
        "makespan_seconds", "generation_throughput", "utilisation", "critical_path", "lower_bound_seconds",
    }  # fmt: skip
    assert 0 < report["lower_bound_seconds"] <= report["makespan_seconds"]
    assert sum(report["critical_path"].values()) == pytest.approx(report["makespan_seconds"])
    assert max(report["utilisation"].values()) <= 1 + 1e-9
    assert report["generation_throughput"] <= report["closed_form_throughput"] * 1.001
    assert report["peak_gpu_memory_bytes"] <= report["usable_gpu_memory_bytes"]


def test_simulate_writes_trace_chart_and_graph(hrm: Invoke, policy: Path, tmp_path: Path) -> None:
    trace, chart, graph = tmp_path / "out.json", tmp_path / "gantt.png", tmp_path / "graph.txt"
    files = ("--trace", str(trace), "--plot", str(chart), "--graph", str(graph))
    code, out, _ = hrm("simulate", *FAST, "--policy", str(policy), *files)
    assert code == 0
    assert "Critical path" in out
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(e["ph"] == "X" for e in events) == sum(line[0].isdigit() for line in graph.read_text().splitlines())
    assert chart.read_bytes()[:4] == b"\x89PNG"


def test_simulate_searches_where_no_policy_is_given_and_runs_requests(hrm: Invoke) -> None:
    code, out, _ = hrm("simulate", *FAST, "--schedule", "cgopipe", "--requests", "100", "--json")
    run = json.loads(out)["run"]
    assert code == 0
    assert run["requests"] == 100
    assert run["generated_tokens"] == 800
    assert run["passes"] == 8


def test_simulate_shows_the_prefill_pass(hrm: Invoke, policy: Path) -> None:
    code, out, _ = hrm("simulate", *FAST, "--policy", str(policy), "--prefill", "--json")
    assert code == 0
    assert json.loads(out)["pass"] == "prefill"


def test_auto_shows_a_prefill_pass_though_its_best_policy_mixes(hrm: Invoke) -> None:
    code, out, _ = hrm("simulate", *T4, "--gen-len", "64", "--prefill", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["pass"] == "prefill"
    assert not report["policy"]["mixed_prefill"]


def test_a_prefill_pass_of_a_policy_that_mixes_is_refused(hrm: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    hrm("search", *T4, "--gen-len", "64", "--json", "--output", str(path))
    code, _, err = hrm("simulate", *T4, "--gen-len", "64", "--policy", str(path), "--prefill")
    assert code == 1
    assert "mixes prefill" in err


def test_routing_decides_how_an_expert_cache_fares(hrm: Invoke, tmp_path: Path) -> None:
    path, lengths = tmp_path / "cache.yaml", ("--prompt-len", "16")
    hrm("search", *FAST, *lengths, "--schedule", "expert_cache", "--json", "--output", str(path))
    sizes = {"batch_size": 4, "micro_batch_size": 4, "ffn_batch_size": 4, "weights_on_gpu": 0.05}
    path.write_text(bad(path.read_text(), sizes))
    rates = {}
    for routing in ("uniform", "zipf:1.5"):
        code, out, _ = hrm("simulate", *FAST, *lengths, "--policy", str(path), "--json", "--routing", routing)
        assert code == 0
        rates[routing] = json.loads(out)["generation_throughput"]
    assert rates["zipf:1.5"] > rates["uniform"]


def test_search_refined(hrm: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    code, out, _ = hrm("search", *FAST, "--refine", "3", "--json", "--output", str(path))
    refined = json.loads(out)["refined"]
    assert code == 0
    assert len(refined) == 3
    assert refined[0]["generation_throughput"] == max(r["generation_throughput"] for r in refined)
    assert yaml.safe_load(path.read_text()) == refined[0]["policy"]
    gap = refined[0]["gap"]
    assert gap["bound"] + gap["bubbles"] + gap["latency"] + gap["contention"] == pytest.approx(gap["makespan"])


def test_compare_lists_every_schedule(hrm: Invoke, tmp_path: Path) -> None:
    chart = tmp_path / "bars.svg"
    words = ("compare", *FAST, "--model", "olmoe-1b-7b", "--plot", str(chart))
    code, out, _ = hrm(*words)
    assert code == 0
    for name in ("auto", "cgopipe", "module_batched", "flexgen", "fastdecode", "layer_streaming", "expert_cache"):
        assert name in out
    assert chart.exists()


def test_compare_says_what_does_not_fit(hrm: Invoke) -> None:
    code, out, _ = hrm("compare", *FAST, "--model", "mixtral-8x22b", "--json")
    rows = {row["schedule"]: row for row in json.loads(out)}
    assert code == 0
    assert not rows["auto"]["fits"]
    assert "GiB" in rows["auto"]["reason"]


def test_published_prints_rows_and_errors(hrm: Invoke, tmp_path: Path) -> None:
    chart = tmp_path / "parity.png"
    code, out, _ = hrm("published", "--no-auto", "--plot", str(chart))
    assert code == 0
    assert "89 of 89 pairs" in out
    assert "S2 mtbench 128 MoEL(p)" in out
    assert chart.exists()


def bad(text: str, changes: dict[str, object]) -> str:
    return yaml.safe_dump({**yaml.safe_load(text), **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights_on_gpu": 0.9}, "GPU memory"),
        ({"batch_size": 460_000, "micro_batch_size": 460, "ffn_batch_size": 460}, "CPU memory"),
        ({"page_pool_bytes": 1.0}, "page_pool_bytes"),
        ({"schedule": "cgopip"}, "cgopipe"),
        ({"hidden_states_by": "magic"}, "hidden_states_by"),
        ({"kind": "unknown"}, "kind"),
    ],
)
def test_a_policy_that_cannot_run_is_refused_in_one_line(
    hrm: Invoke, policy: Path, changes: dict[str, object], expected: str
) -> None:
    policy.write_text(bad(policy.read_text(), changes))
    code, out, err = hrm("simulate", *FAST, "--policy", str(policy))
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--policy", "no-such.yaml"), "no-such.yaml"),
        (("--requests", "0"), "requests"),
        (("--schedule", "expert_cache", "--routing", "zipf:x"), "zipf"),
        (("--schedule", "expert_cache", "--routing", "no-such.npz"), "no-such.npz"),
        (("--schedule", "cgopipe", "--routing", "uniform"), "expert_cache"),
        (("--schedule", "cgopipe", "--trace", "/no/such/place.json"), "/no/such/place.json"),
        (("--schedule", "cgopipe", "--graph", "/no/such/place.txt"), "/no/such/place.txt"),
        (("--schedule", "cgopipe", "--plot", "chart.gif"), ".gif"),
    ],
)
def test_bad_options_are_refused_without_a_traceback(hrm: Invoke, words: tuple[str, ...], expected: str) -> None:
    code, _, err = hrm("simulate", *FAST, *words)
    assert code in (1, 2)
    assert expected in err
    assert "Traceback" not in err

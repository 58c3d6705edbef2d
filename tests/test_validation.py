"""`hrm validate`: which policies it runs, how it splits a gap into terms, and the whole command on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_engine import write_config
from runtime_policies import POLICIES, make_policy
from typer.testing import CliRunner

from hrm.errors import HrmError
from hrm.predict.simulate import Simulator
from hrm.predict.timeline import Timeline
from hrm.schedule.slice import decode_slice
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.policy_file import save_policy
from hrm.spec.workload import make_workload
from runtime.checkpoint.synthetic import synthetic_checkpoint
from runtime.validation.bench import Bench
from runtime.validation.cases import Case, cut_batch, halved, make_plan, quartered
from runtime.validation.check import check_case
from runtime.validation.explain import BETWEEN, WAITING, explain, kind_table, queue_table
from runtime.validation.figures import gantt_pair_figure, parity_points
from runtime.validation.options import ValidateOptions, parse_names, parse_numbers
from runtime.validation.summary import rankings, read_report, summary
from runtime.validation.tables import describe_result
from runtime.validation.workloads import random_prompts, run_shape, search_workload

RATES = make_rates(load_profile("t4"), load_model("mixtral-tiny"), make_workload(8, 28, where="test"))
GEN_LEN, CONTEXT = 8, 32


def timeline_of(policy: Policy) -> Timeline:
    return Simulator(RATES).simulate(policy, decode_slice(policy, 30.0)).timeline


def stretched(timeline: Timeline, kind: str, factor: float) -> Timeline:
    """Tasks of one kind longer, and everything behind them in the pass as much later as they are together."""
    length = timeline.end - timeline.start
    slower = np.array([task.kind == kind for task in timeline.graph.tasks])
    longer = np.where(slower, length * factor, length)
    added = np.cumsum(longer - length)
    start = timeline.start + added - (longer - length)
    return Timeline(timeline.graph, start, start + longer, longer)


@pytest.mark.parametrize("name", POLICIES)
def test_smaller_batches_are_policies_of_the_same_placement(name: str) -> None:
    policy = POLICIES[name]
    for smaller in (halved(policy), quartered(policy), *(cut_batch(policy, n) for n in (1, 4, 10_000))):
        assert smaller.batch_size <= policy.batch_size
        sizes = ("batch_size", "micro_batch_size", "ffn_batch_size")
        assert smaller.model_copy(update={key: getattr(policy, key) for key in sizes}) == policy
    assert cut_batch(policy, 4).batch_size <= 4
    assert cut_batch(policy, 10_000) == policy


def test_a_mixed_run_reaches_a_steady_state() -> None:
    policy = make_policy("auto", 5, 4, mixed_prefill=True, attention_place="hybrid")
    shape = run_shape(policy, CONTEXT, GEN_LEN, passes=3)
    entering = 3  # ceil(20 / 8), so that a sequence stays 7 passes
    assert (shape.max_tokens, shape.first_measured) == (7, 7)
    assert shape.requests == 20 + 3 * entering
    assert shape.workload.mean_context_len == pytest.approx(CONTEXT, abs=1)


def test_a_run_without_mixing_decodes_only_what_is_measured() -> None:
    shape = run_shape(make_policy("cgopipe", 4, 2), CONTEXT, GEN_LEN, passes=3)
    assert (shape.requests, shape.max_tokens, shape.first_measured) == (8, 5, 2)
    prompts = random_prompts(shape, 100)
    assert {len(request.prompt) for request in prompts} == {CONTEXT - GEN_LEN // 2}
    assert all(request.sampling.ignore_eos for request in prompts)


def test_the_slower_kind_is_named() -> None:
    predicted = timeline_of(make_policy("layer_streaming", 64, 1, attention_on_gpu=1.0, kv_on_gpu=1.0))
    slower = "weight_fetch" if "HTOD" in {str(q) for q in predicted.busy_seconds} else "expert_ffn"
    measured = stretched(predicted, slower, 3.0)
    explanation = explain(predicted, measured, measured.makespan)
    assert explanation.queue == "HTOD"
    assert explanation.wrong == "weight_fetch (HTOD)"
    assert explanation.gap == pytest.approx(measured.makespan - predicted.makespan)


@pytest.mark.parametrize("name", ["cgopipe", "flexgen", "module_batched", "auto, experts on both"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["weight_fetch", "expert_ffn", "cpu_attention"])
def test_terms_add_up_to_the_gap(name: str, factor: float, kind: str) -> None:
    predicted = timeline_of(POLICIES[name])
    measured, seconds = stretched(predicted, kind, factor), 1.1 * predicted.makespan
    explanation = explain(predicted, measured, seconds)
    assert sum(term.seconds for term in explanation.terms) == pytest.approx(explanation.gap)
    assert explanation.gap == pytest.approx(seconds - predicted.makespan)
    assert {WAITING, BETWEEN} <= {term.name for term in explanation.terms}
    if factor < 1:
        return  # this way of shortening lets tasks overlap, which no critical path does
    critical = sum(term.seconds for term in explanation.critical)
    assert critical == pytest.approx(measured.makespan - predicted.makespan, abs=2e-6 * measured.makespan)


def test_tables_hold_every_kind_and_queue() -> None:
    predicted = timeline_of(POLICIES["cgopipe"])
    measured = stretched(predicted, "expert_ffn", 2.0)
    kinds = kind_table(predicted, measured)
    assert sum(row.count for row in kinds) == len(predicted.graph.tasks)
    row = next(row for row in kinds if row.kind == "expert_ffn")
    assert row.measured == pytest.approx(2 * row.predicted)
    assert {row.queue for row in queue_table(predicted, measured)} == {str(r) for r in predicted.busy_seconds}


def test_what_does_not_fit_is_left_out_with_the_reason(tmp_path: Path) -> None:
    save_policy(make_policy("cgopipe", 4, 2, prefill_chunk_tokens=256), tmp_path / "small.yaml")
    save_policy(make_policy("cgopipe", 40_000_000, 2), tmp_path / "large.yaml")
    files = tuple(tmp_path / f"{name}.yaml" for name in ("small", "large", "small"))
    options = ValidateOptions("t4", policies=files, contexts=(CONTEXT,), gen_len=GEN_LEN)
    rates = {CONTEXT: make_rates(load_profile("t4"), load_model("mixtral-tiny"), search_workload(CONTEXT, GEN_LEN))}
    plan = make_plan(options, rates, lambda done, total: None)
    assert [case.label for case in plan.cases] == ["small, 2 x 4"]
    assert [(left.label, left.context_len) for left in plan.skipped] == [("large, 2 x 40000000", CONTEXT)]
    assert "memory" in plan.skipped[0].reason


@pytest.mark.parametrize(
    "name",
    ["cgopipe, experts on both", "layer_streaming", "expert_cache", "auto, mixed, batch", "flexgen, part resident"],
)
def test_a_run_is_measured_and_predicted(name: str, tmp_path: Path) -> None:
    model = synthetic_checkpoint(str(write_config(tmp_path / "config.json")))
    policy = POLICIES[name]
    rates = make_rates(load_profile("t4"), model.spec, search_workload(CONTEXT, GEN_LEN))
    run = check_case(Bench(model, "cpu", None), Case(name, policy, CONTEXT), rates, GEN_LEN, 2)
    check = run.check
    assert check.pass_name == ("mixed" if policy.mixed_prefill else "decode")
    assert check.measured_seconds in check.pass_seconds and len(check.pass_seconds) == 2
    assert check.predicted_seconds == pytest.approx(run.predicted.makespan)
    both = [
        [(t.kind, t.layer, t.micro_batch, t.resource) for t in r.graph.tasks] for r in (run.predicted, run.measured)
    ]
    assert both[0] == both[1]
    assert run.predicted.graph.slice == run.measured.graph.slice == check.slice
    assert check.decoding == sum(mb.sequences for mb in check.slice.micro_batches)
    assert (check.prefill_measured is None) == policy.mixed_prefill
    assert check.gpu_memory.predicted.keys() <= check.gpu_memory.measured.keys()
    assert check.cpu_memory.measured_total > 0
    gantt_pair_figure(run.predicted, run.measured)


@pytest.mark.parametrize("name", ["cgopipe", "flexgen", "layer_streaming", "expert_cache"])
def test_small_buffers_hold_every_prompt_token_once(name: str) -> None:
    model, policy = synthetic_checkpoint("mixtral-tiny", 2), POLICIES[name]
    rates = make_rates(load_profile("t4"), model.spec, search_workload(2 * CONTEXT, GEN_LEN))
    check = check_case(Bench(model, "cpu", None), Case(name, policy, 2 * CONTEXT), rates, GEN_LEN, 2).check
    memory, prompts = check.cpu_memory, policy.batch_size * (2 * CONTEXT - GEN_LEN // 2)
    assert memory.measured["buffers"] >= prompts * model.config.hidden_size * model.config.dtype.itemsize
    assert memory.predicted["buffers"] == pytest.approx(memory.measured["buffers"], rel=0.2)
    assert memory.predicted_total == pytest.approx(memory.measured_total, rel=0.05)


def test_weights_stay_where_the_next_policy_wants_them(tmp_path: Path) -> None:
    model = synthetic_checkpoint(str(write_config(tmp_path / "config.json")))
    bench, stores = Bench(model, "cpu", None), []
    whole = make_policy("cgopipe", 4, 3, dense_weights_on_gpu=0.0)
    for policy in (whole, halved(whole), make_policy("cgopipe", 4, 3, weights_on_gpu=0.5)):
        session = bench.open(policy, random_prompts(run_shape(policy, CONTEXT, GEN_LEN, 1), 100))
        for _ in range(3):
            session.step()
        session.close()
        stores.append(session.memory.experts)
    assert stores[0] is stores[1]
    assert stores[1] is not stores[2]


def invoke(*words: str) -> tuple[int, str, BaseException | None]:
    import typer

    from runtime.cli.validate import validate

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(validate)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.exception


def test_the_command_writes_report_and_figures(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json")
    files = {name: tmp_path / f"{name}.yaml" for name in ("a", "b", "odd")}
    save_policy(make_policy("cgopipe", 4, 2), files["a"])
    save_policy(make_policy("auto", 4, 2, mixed_prefill=True, attention_place="hybrid"), files["b"])
    save_policy(
        make_policy("layer_streaming", 2, 1, attention_on_gpu=1.0, kv_on_gpu=1.0, weights_on_disk=0.0), files["odd"]
    )
    report, plot, gantt = tmp_path / "r.json", tmp_path / "p.png", tmp_path / "g.png"
    code, out, error = invoke(
        "--profile", "t4", "--synthetic", str(config), *(str(f) for f in files.values()), "--contexts", "24,32",
        "--gen-len", "8", "--passes", "1", "--report", str(report), "--plot", str(plot), "--gantt", str(gantt),
        "--device", "cpu",
    )  # fmt: skip
    assert (code, error) == (0, None), out
    assert "mean absolute error" in out and "wrong term" in out
    found = read_report(report)
    assert len(found.runs) == 6 and not found.failed
    assert found.machine.gpu_memory_emulated
    assert json.loads(report.read_text())["summary"] == json.loads(json.dumps(summary(found)))
    assert len(parity_points(found)) == 6
    assert {ranking.context_len for ranking in rankings(found)} == {24, 32}
    assert all(path.stat().st_size for path in (plot, tmp_path / "g-worst.png", tmp_path / "g-best.png"))


def test_a_failed_policy_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime.validation.validate as module

    real = module.check_case

    def fails_first(bench: Bench, case: Case, *rest: object) -> object:
        if case.label.startswith("a,"):
            raise MemoryError("no more")
        return real(bench, case, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "check_case", fails_first)
    for name, n in (("a", 2), ("b", 3)):
        save_policy(make_policy("cgopipe", 2, n), tmp_path / f"{name}.yaml")
    config = write_config(tmp_path / "config.json")
    words = ["--profile", "t4", "--synthetic", str(config), "--contexts", "24", "--gen-len", "8", "--passes", "1"]
    code, out, _ = invoke(*words, "--json", "--device", "cpu", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    data = json.loads(out)
    assert code == 0 and len(data["runs"]) == 1
    assert [(left["label"], left["out_of_memory"]) for left in data["failed"]] == [("a, 2 x 2", True)]


@pytest.mark.parametrize("where", ["while it runs", "between runs"])
def test_interrupted_it_reports_what_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import runtime.validation.validate as module

    real, add = module.check_case, module.Outcome.add

    def stops_at_b(bench: Bench, case: Case, *rest: object) -> object:
        if case.label.startswith("b,"):
            raise KeyboardInterrupt
        return real(bench, case, *rest)  # type: ignore[arg-type]

    def stops_after_a(outcome: module.Outcome, result: object) -> None:
        add(outcome, result)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    if where == "while it runs":
        monkeypatch.setattr(module, "check_case", stops_at_b)
    else:
        monkeypatch.setattr(module.Outcome, "add", stops_after_a)
    for name, n in (("a", 2), ("b", 3)):
        save_policy(make_policy("cgopipe", 2, n), tmp_path / f"{name}.yaml")
    config = write_config(tmp_path / "config.json")
    words = ["--profile", "t4", "--synthetic", str(config), "--contexts", "24", "--gen-len", "8", "--passes", "1"]
    report = tmp_path / "report.json"
    code, _, _ = invoke(
        *words, "--report", str(report), "--device", "cpu", *(str(tmp_path / f"{n}.yaml") for n in "ab")
    )
    data = json.loads(report.read_text())
    assert code == 0 and [run["label"] for run in data["runs"]] == ["a, 2 x 2"]
    assert [(left["label"], left["reason"]) for left in data["failed"]] == [("b, 3 x 2", "interrupted")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "x", "--synthetic", "y"), "not both"),
        (("--model", "x", "--layers", "2"), "--layers"),
        (("--dtype", "int3"), "--dtype int3"),
        (("--device", "tpu"), "--device tpu"),
        (("--contexts", "8"), "--contexts"),
        (("--contexts", "a,b"), "--contexts a,b"),
        (("--batches", "0"), "--batches"),
        (("--schedules", "cgopip"), "cgopip"),
        (("--gpu-memory", "16"), "--gpu-memory"),
        (("--report", "/nowhere/at/all.json"), "cannot be written"),
        (("--plot", "figure.doc"), "figure.doc"),
        (("missing.yaml",), "missing.yaml"),
        (("--synthetic", "mixtral-9x9b"), "mixtral-9x9b"),
    ],
)
def test_wrong_options_are_told_in_one_line(words: tuple[str, ...], message: str) -> None:
    _, _, error = invoke("--profile", "t4", "--device", "cpu", *words)
    assert isinstance(error, HrmError)
    assert message in str(error) and "\n" not in str(error)


def test_a_file_that_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(HrmError, match="is no report"):
            read_report(path)


def test_lists_of_options() -> None:
    assert parse_numbers("64, 256", "--contexts") == (64, 256)
    assert parse_numbers(None, "--contexts") == ()
    assert parse_names("auto, cgopipe") == ("auto", "cgopipe")


def test_a_result_in_one_line() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "validation_h200.json"
    text = describe_result(read_report(path).runs[0])
    assert text == "auto, 11 x 106, context 384: 135 ms a pass, predicted 142 ms (+5%)"

"""`hrm run` around its engine: options, inputs, results, resuming, and one clear line for every fault."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Invoke
from fake_engine import FakeEngine, write_checkpoint, write_config, write_policy

import runtime.cli.run as run_module
from hrm.cli.main import app
from hrm.errors import HrmError
from hrm.predict.generation import simulate_generation
from hrm.predict.requests import Request as Asked
from hrm.predict.simulate import Simulator
from hrm.predict.timeline import Timeline
from hrm.schedule.slice import decode_slice
from hrm.search.refine import best_by_simulation
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.policy_file import load_policy
from hrm.spec.workload import make_workload
from hrm.spec.workload_file import load_workload
from runtime.cli.run_loop import describe_speed
from runtime.cli.run_search import cut_policies, search_for
from runtime.cli.run_source import RunSource

Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Fake engines in place of real ones, in the order in which they are made."""
    made: list[FakeEngine] = []

    def make(source: RunSource, policy: Policy, device: str, gpu_memory: float | None) -> FakeEngine:
        made.append(FakeEngine(source.detokenise))
        return made[-1]

    monkeypatch.setattr(run_module, "_engine", make)
    if not any(command.name == "run" for command in app.registered_commands):
        app.command("run")(run_module.run)
    return made


@pytest.fixture
def synthetic(tmp_path: Path) -> list[str]:
    """Options of a run of random weights under a stated policy."""
    config, policy = write_config(tmp_path / "config.json"), write_policy(tmp_path / "policy.yaml")
    return ["run", "--synthetic", str(config), "--policy", str(policy), "--device", "cpu", "--gen-len", "4"]


@pytest.fixture
def real(tmp_path: Path) -> list[str]:
    """Options of a run of a checkpoint, but the input."""
    model, policy = write_checkpoint(tmp_path / "model"), write_policy(tmp_path / "policy.yaml")
    output = tmp_path / "out.jsonl"
    return ["run", "--model", str(model), "--policy", str(policy), "--output", str(output), "--device", "cpu"]


def lines(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def by_id(path: Path) -> dict[str, dict[str, Any]]:
    found = lines(path)
    assert len({line["id"] for line in found}) == len(found)
    return {line["id"]: line for line in found}


def write_input(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_random_prompts_of_shipped_lengths(hrm: Invoke, synthetic: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    code, out, err = hrm(*synthetic, "--output", str(output), "--num-requests", "7", "--json")
    assert (code, err) == (0, "")
    report, results = json.loads(out), by_id(output)
    counted = [results[f"request-{i}"].get("prompt_tokens") for i in range(1, 8)]
    assert counted == [32, None, None, 55, 32, 46, 42]  # the fake engine refuses 62 and 73
    assert report["requests"]["finished"] + report["requests"]["refused"] == 7
    assert report["predicted_tokens_per_s"] is None and report["last_pass"] is None
    assert report["generated_tokens"] == 4 * report["requests"]["finished"]


def test_texts_and_tables(hrm: Invoke, synthetic: list[str], tmp_path: Path) -> None:
    prompts = write_input(tmp_path / "texts.jsonl", {"turns": ["x" * 40]}, {"prompt": "y" * 400})
    code, out, _ = hrm(*synthetic, "--prompts", prompts, "--profile", "t4.yaml", "--num-requests", "3")
    assert code == 0
    for text in ("2 finished, 1 refused", "8 tokens in", "reached)", "8 = 2 x 4", "ecode attention on the CPU"):
        assert text in out.replace("\n", " ")


def test_both_forms_with_refusals(hrm: Invoke, real: list[str], tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 3}
    two = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
    chat = {"method": "POST", "url": "/v1/chat/completions"}
    rows = (
        {"id": "text", "prompt": "w1 w2", "max_tokens": 3},
        {"id": "ids", "prompt_tokens": [1, 7, 8], "max_tokens": 3, "seed": 5},
        {"id": "beyond", "prompt_tokens": [500]},
        {"id": "long", "prompt_tokens": [5] * 100},
        {"custom_id": "chat", "body": body, **chat},
        {"custom_id": "two", "body": two, **chat},
    )
    code, out, err = hrm(*real, "--input", write_input(tmp_path / "in.jsonl", *rows), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["requests"] == {"finished": 3, "refused": 3, "finished_earlier": 0}
    results = {line.get("custom_id", line["id"]): line for line in lines(tmp_path / "out.jsonl")}
    assert set(results) == {"text", "ids", "beyond", "long", "chat", "two"}
    assert results["text"]["prompt_tokens"] == 3  # <s> w1 w2
    assert results["text"]["text"].startswith("w") and len(results["text"]["tokens"]) == 3
    assert "vocabulary of 128" in results["beyond"]["error"]["message"]
    assert "100 tokens exceed" in results["long"]["error"]["message"]
    assert results["chat"]["response"]["body"]["usage"]["prompt_tokens"] == 3
    assert results["two"]["response"] is None and "no chat template" in results["two"]["error"]["message"]


def test_chat_template_of_the_checkpoint(hrm: Invoke, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"
    model, policy = write_checkpoint(tmp_path / "model", template), write_policy(tmp_path / "policy.yaml")
    body = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    output = tmp_path / "out.jsonl"
    code, _, _ = hrm("run", "--model", str(model), "--policy", str(policy), "--device", "cpu", "--output", str(output),
                     "--input", write_input(tmp_path / "in.jsonl", row))  # fmt: skip
    assert code == 0
    assert lines(output)[0]["response"]["body"]["usage"]["prompt_tokens"] == 6  # <s> user : w1 assistant :


def test_resume_does_what_is_left(hrm: Invoke, synthetic: list[str], tmp_path: Path, engines: list[FakeEngine]) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert hrm(*synthetic, "--output", str(whole))[0] == 0
    assert hrm(*synthetic, "--output", str(cut), "--resume")[0] == 0  # nothing to continue yet: a new run
    cut.write_bytes(cut.read_bytes()[:2000])
    left = 80 - len(cut.read_bytes().split(b"\n")[:-1])
    stated = [word for word in synthetic if word != "--policy" and not word.endswith("policy.yaml")]
    code, out, err = hrm(*stated, "--output", str(cut), "--resume", "--json")  # the policy is the earlier run's
    assert (code, err) == (0, "")
    report = json.loads(out)["requests"]
    assert report["finished"] + report["refused"] == left == 80 - report["finished_earlier"]
    assert by_id(cut) == by_id(whole)
    code, out, _ = hrm(*stated, "--output", str(cut), "--resume")
    assert code == 0 and "nothing ran" in out and "80 finished earlier" in out
    assert len(engines) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--temperature", "0.5"), "sampling"), (("--gen-len", "5"), "sampling"), (("--seed", "1"), "input, sampling"),
        (("--layers", "1"), "model"), (("--dtype", "bf16"), "model, dtype"),
        (("--num-requests", "79"), "input, sampling"),
    ],
)  # fmt: skip
def test_another_run_is_not_continued(
    hrm: Invoke, synthetic: list[str], tmp_path: Path, change: tuple[str, str], named: str
) -> None:
    output = tmp_path / "out.jsonl"
    short = [*synthetic, "--output", str(output), "--num-requests", "80"]
    assert hrm(*short)[0] == 0
    output.write_bytes(output.read_bytes()[:300])
    before = output.read_bytes()
    code, _, err = hrm(*short, *change, "--resume")
    assert code == 1 and output.read_bytes() == before
    assert f"belongs to a run with another {named} (see" in err


def test_fewer_requests_do_not_continue_a_run_that_answered_the_others(
    hrm: Invoke, synthetic: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    assert hrm(*synthetic, "--output", str(output))[0] == 0
    code, _, err = hrm(*synthetic, "--output", str(output), "--num-requests", "79", "--resume")
    assert code == 1 and "belongs to a run with another input, sampling (see" in err


def test_answers_to_what_nobody_asked_are_not_continued(hrm: Invoke, synthetic: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert hrm(*synthetic, "--output", str(output))[0] == 0
    output.write_bytes(output.read_bytes().replace(b'"request-80"', b'"request-81"'))
    code, _, err = hrm(*synthetic, "--output", str(output), "--resume")
    assert code == 1 and "answers 'request-81', which the input does not ask" in err


def test_another_policy_is_not_continued_but_overwritten(hrm: Invoke, synthetic: list[str], tmp_path: Path) -> None:
    output, policy = tmp_path / "out.jsonl", tmp_path / "policy.yaml"
    assert hrm(*synthetic, "--output", str(output))[0] == 0
    code, _, err = hrm(*synthetic, "--output", str(output))
    assert code == 1 and "continue with --resume or replace with --overwrite" in err
    policy.write_text(policy.read_text().replace("page_pool_bytes: 1000000.0", "page_pool_bytes: 2000000.0"))
    code, _, err = hrm(*synthetic, "--output", str(output), "--resume")
    assert code == 1 and "another policy" in err
    assert hrm(*synthetic, "--output", str(output), "--overwrite")[0] == 0
    assert len(by_id(output)) == 80


def test_searches_without_a_policy(hrm: Invoke, tmp_path: Path) -> None:
    config, output = write_config(tmp_path / "config.json"), tmp_path / "out.jsonl"
    words = ["run", "--synthetic", str(config), "--device", "cpu", "--num-requests", "3", "--gen-len", "4"]
    words += [
        "--profile",
        "t4.yaml",
        "--schedule",
        "cgopipe",
        "--gpu-memory",
        "1GiB",
        "--json",
        "--output",
        str(output),
    ]
    code, out, err = hrm(*words, "--output", str(output))
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["policy"]["schedule"] == "cgopipe" and report["predicted_tokens_per_s"] > 0
    assert json.loads(Path(f"{output}.meta").read_text())["policy"] == report["policy"]


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    """A simulated pass of the tiny model."""
    model = load_model(str(write_config(tmp_path / "config.json")))
    rates = make_rates(load_profile("t4.yaml"), model, make_workload(4, 8))
    policy = load_policy(write_policy(tmp_path / "policy.yaml"))
    return Simulator(rates).simulate(policy, decode_slice(policy, 8.0)).timeline


def test_trace_and_plot_of_the_last_pass(
    hrm: Invoke, synthetic: list[str], tmp_path: Path, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_engine", lambda *_: FakeEngine(last_timeline=timeline))
    trace, plot = tmp_path / "trace.json", tmp_path / "gantt.svg"
    code, out, err = hrm(*synthetic, "--num-requests", "2", "--trace", str(trace), "--plot", str(plot))
    assert code == 0 and "Last pass" in out and "HTOD" in out
    assert f"Wrote {trace}" in err and json.loads(trace.read_text())["traceEvents"] and plot.stat().st_size > 1000


def test_a_fault_of_the_engine_keeps_what_is_finished(
    hrm: Invoke, synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"

    class Failing(FakeEngine):
        def _answer(self, request: Any) -> Any:
            if self.progress.passes == 5:
                raise HrmError("GPU memory is used up")
            return super()._answer(request)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_engine", lambda *_: Failing())
        code, _, err = hrm(*synthetic, "--output", str(output))
    assert (code, err) == (1, "hrm: GPU memory is used up\n")
    assert len(by_id(output)) == 4
    assert hrm(*synthetic, "--output", str(output), "--resume")[0] == 0
    assert len(by_id(output)) == 80


BAD_OPTIONS: list[tuple[Callable[[Path], list[str]], str]] = [
    (lambda _: [], "give --model DIR or --synthetic NAME"),
    (lambda p: ["--model", str(p), "--synthetic", "mixtral-8x7b"], "one of them"),
    (lambda p: ["--model", str(p), "--policy", "p"], "--model needs --input"),
    (lambda p: ["--model", str(p), "--input", "x", "--policy", "p"], "--model needs --output"),
    (lambda p: ["--model", str(p), "--input", "x", "--output", "y", "--layers", "2"], "--layers is for --synthetic"),
    (lambda _: ["--synthetic", "mixtral-8x7b"], "give --policy FILE, or --profile"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--resume", "--overwrite"], "--resume or --overwrite, not both"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--resume"], "--resume needs --output"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--prompts", "a", "--input", "b"], "--input or --prompts"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--num-requests", "2", "--input", "b"], "--num-requests is for"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--temperature", "nan"], "--temperature nan"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--top-p", "1.5"], "--top-p 1.5"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--dtype", "int8"], "--dtype int8"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--device", "tpu"], "--device tpu"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--gpu-memory", "16"], "bare number without a unit"),
    (lambda p: ["--synthetic", "m", "--policy", "p", "--output", str(p / "no" / "x")], "cannot be written"),
    (lambda _: ["--synthetic", "m", "--policy", "p", "--plot", "x.doc"], "x.doc"),
    (lambda _: ["--synthetic", "mixtral-8x7c", "--policy", "p"], "did you mean"),
    (lambda _: ["--synthetic", "opt-30b", "--policy", "p"], "opt"),
    (lambda p: ["--synthetic", str(write_config(p / "c.json")), "--policy", str(p / "no.yaml")], "no.yaml: no such"),
    (lambda p: ["--synthetic", "m", "--policy", "p", "--input", str(p / "no.jsonl")], "no.jsonl: no such file"),
    (
        lambda p: ["--synthetic", "m", "--policy", "p", "--input", write_input(p / "i", {"prompt": 1})],
        "i:1: prompt must be text",
    ),
    (
        lambda p: ["--model", str(p / "none"), "--policy", "p", "--output", str(p / "o"), "--input",
                   write_input(p / "i", {"prompt": "a"})],
        "no such directory",
    ),
    (
        lambda p: ["--synthetic", str(write_config(p / "c.json")), "--policy", "p", "--input",
                   write_input(p / "i", {"prompt": "a"})],
        "i:1: text needs a tokenizer",
    ),
    (
        lambda p: ["--model", str(write_checkpoint(p / "m", tokenizer=False)), "--policy", "p", "--output",
                   str(p / "o"), "--input", write_input(p / "i", {"prompt": "a"})],
        "holds no tokenizer.json",
    ),
    (
        lambda p: ["--synthetic", str(write_config(p / "c.json")), "--profile", "t4", "--input",
                   write_input(p / "i", {"prompt_tokens": [999]})],
        "every request is refused",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_bad_input_is_one_clear_line(
    hrm: Invoke, tmp_path: Path, words: Callable[[Path], list[str]], message: str
) -> None:
    code, _, err = hrm("run", *words(tmp_path))
    assert code == 1
    assert err.startswith("hrm: ") and err.count("\n") == 1 and message in err


def test_input_and_output_are_different_files(hrm: Invoke, synthetic: list[str], tmp_path: Path) -> None:
    path = write_input(tmp_path / "in.jsonl", {"prompt_tokens": [1]})
    code, _, err = hrm(*synthetic, "--input", path, "--output", path, "--overwrite")
    assert code == 1 and "same file as --input" in err


def test_missing_packages_are_named(hrm: Invoke, synthetic: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.cli.requirements.find_spec", lambda name: None if name == "torch" else sys)
    code, _, err = hrm(*synthetic)
    assert code == 1 and err == 'hrm: this command needs torch: pip install "hrm[runtime]"\n'


@pytest.mark.parametrize("num_requests", [1, 5, 80, 1000])
def test_a_batch_is_cut_to_the_requests(tmp_path: Path, num_requests: int) -> None:
    large = {"batch_size": 500, "micro_batch_size": 100, "ffn_batch_size": 100}
    policy = load_policy(write_policy(tmp_path / "policy.yaml"))
    cut = list(cut_policies(Policy.model_validate(policy.model_dump() | large), num_requests))
    limit = min(num_requests, 500)
    itself = [5] if num_requests >= 500 else []
    assert [p.num_micro_batches for p in cut] == itself + [n for n in (1, 2, 4, 8) if n <= limit]
    assert all(limit - 8 < p.batch_size <= min(limit + 8, 500) for p in cut)


def test_the_search_simulates_the_run_it_is_for() -> None:
    """A batch that fills by a few prompts a pass is best without end, and poor for one batch of requests."""
    model, workload = load_model("mixtral-8x7b"), load_workload("mtbench-questions")
    rates = make_rates(load_profile("l4"), model, workload)
    endless = best_by_simulation(rates, "auto").policy
    assert endless.mixed_prefill
    asked = [Asked(length, 128) for length in (workload.prompt_lens * 9)[:700]]
    chosen = search_for(rates, "auto", asked)
    speeds = []
    for policy in (chosen, endless):
        simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
        speeds.append(simulate_generation(simulator, policy, asked).generation_throughput)
    assert chosen.batch_size < 708 and speeds[0] > 1.1 * speeds[1]


def test_a_single_request_has_a_policy() -> None:
    """Where the schedule runs one sequence at all: CPU attention that overlaps takes two."""
    rates = make_rates(load_profile("l4"), load_model("mixtral-8x7b"), load_workload("mtbench-questions"))
    assert search_for(rates, "auto", [Asked(77, 16)]).batch_size == 1
    with pytest.raises(HrmError, match="fastdecode has no policy for as few requests as 1"):
        search_for(rates, "fastdecode", [Asked(77, 16)])


def test_speed_and_time_left() -> None:
    from fake_engine import FakeProgress

    assert describe_speed(FakeProgress(tokens_per_s=0.0), 10, None) == "0.0 tokens/s"
    progress = FakeProgress(generated_tokens=1000, tokens_per_s=2000.0)
    assert describe_speed(progress, 9_001_000, 2500.0) == "2,000.0 tokens/s, 2,500.0 predicted, 1:15:00 left"
    assert describe_speed(progress, 131_000, None) == "2,000.0 tokens/s, 1:05 left"

"""Routing that the engine records, against what transformers' routers choose for the same tokens."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import fake_engine
import numpy as np
import pytest
import torch
from runtime_policies import POLICIES
from tiny_checkpoints import save_tiny
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from hrm.cli.main import app
from hrm.errors import HrmError, WorkloadError
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from hrm.spec.model import ModelSpec
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.cli.run_routing import recorded_routing
from runtime.engine import Engine
from runtime.experts.recorder import RoutingRecorder
from runtime.requests.request import Completion, Refusal, Request, Sampling

FAMILIES = ("mixtral", "qwen2_moe")  # the second has a dense layer between its MoE layers
MIXED = "auto, mixed, batch"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        save_tiny(family, found[family])
    return found


@cache
def model_of(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@cache
def reference(directory: Path, tokens: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Experts and their probabilities, [tokens, MoE layers, k], in one pass over all tokens."""
    model = model_of(directory)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), output_router_logits=True).router_logits
    routed = torch.stack([each.float().softmax(-1) for each in logits if each is not None], dim=1)
    weights, experts = routed.topk(2, dim=-1)
    if model.config.model_type == "mixtral":
        weights = weights / weights.sum(-1, keepdim=True)
    return experts.numpy(), weights.numpy()


def ragged(count: int, seed: int = 0) -> list[Request]:
    """Random prompts with lengths and numbers of tokens to generate of their own; one longer than two chunks."""
    random = np.random.default_rng(seed)
    lengths, most = [*random.integers(1, 20, count - 1), 61], random.integers(1, 9, count)
    return [
        Request(f"r{i}", tuple(random.integers(3, 128, n).tolist()), Sampling(int(m)))
        for i, (n, m) in enumerate(zip(lengths, most, strict=True))
    ]


def run(
    directory: Path, policy: str, requests: Sequence[Request]
) -> tuple[RoutingTrace, dict[str, Completion | Refusal]]:
    source, recorder = Checkpoint.open(directory), RoutingRecorder()
    with Engine(source, POLICIES[policy], device="cpu", recorder=recorder) as engine:
        results = {result.request.request_id: result for result in engine.generate(requests)}
    trace = recorder.trace()
    assert trace is not None
    check_trace(trace, source.spec)
    return trace, results


def rows_of(trace: RoutingTrace, prompt: int) -> tuple[np.ndarray, ...]:
    assert trace.tokens is not None and trace.gate_weights is not None
    mine = trace.prompt == prompt
    return trace.tokens[mine], trace.step[mine], trace.experts[mine], trace.gate_weights[mine]


@pytest.mark.parametrize("policy", ["cgopipe", MIXED, "expert_cache", "auto, experts on both", "layer_streaming"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_routing_is_that_of_transformers(tiny: dict[str, Path], family: str, policy: str) -> None:
    requests = ragged(14)
    trace, results = run(tiny[family], policy, requests)
    for number, request in enumerate(requests):
        result = results[request.request_id]
        assert isinstance(result, Completion)
        inputs = (*request.prompt, *result.tokens[:-1])  # the last token is never an input
        tokens, step, experts, weights = rows_of(trace, number)
        wanted, probabilities = reference(tiny[family], inputs)
        assert tokens.tolist() == list(inputs)
        assert step.tolist() == [0] * len(request.prompt) + list(range(1, len(result.tokens)))
        np.testing.assert_array_equal(experts, wanted)
        np.testing.assert_allclose(weights, probabilities, atol=1e-3)
    assert len(trace.prompt) == sum(len(r.prompt) + len(results[r.request_id].tokens) - 1 for r in requests)


def test_recording_changes_no_token(tiny: dict[str, Path]) -> None:
    requests = ragged(6)
    _, recorded = run(tiny["mixtral"], MIXED, requests)
    with Engine(Checkpoint.open(tiny["mixtral"]), POLICIES[MIXED], device="cpu") as engine:
        plain = {r.request.request_id: r for r in engine.generate(requests)}
    assert {k: r.tokens for k, r in plain.items()} == {k: r.tokens for k, r in recorded.items()}


def test_refused_requests_count_and_do_not_appear(tiny: dict[str, Path]) -> None:
    requests = ragged(4)
    asked = [requests[0], replace(requests[1], prompt=(4000,)), *requests[2:], requests[0]]
    trace, _ = run(tiny["mixtral"], "cgopipe", asked)
    assert sorted(set(trace.prompt.tolist())) == [0, 2, 3, 4]
    for ours, theirs in zip(rows_of(trace, 0), rows_of(trace, 4), strict=True):  # the same request twice
        np.testing.assert_array_equal(ours, theirs)


def test_calls_go_on_counting_and_one_that_is_left_keeps_its_rows(tiny: dict[str, Path]) -> None:
    requests, source, recorder = ragged(6), Checkpoint.open(tiny["mixtral"]), RoutingRecorder()
    assert recorder.trace() is None
    with Engine(source, POLICIES["layer_streaming"], device="cpu", recorder=recorder) as engine:
        for _ in engine.generate(requests):
            break  # the rest is left half-way
        list(engine.generate(requests[:2]))
    trace = recorder.trace()
    assert trace is not None
    check_trace(trace, source.spec)
    assert {6, 7} <= set(trace.prompt.tolist()) <= set(range(8))
    np.testing.assert_array_equal(rows_of(trace, 6)[0][: len(requests[0].prompt)], requests[0].prompt)


def with_layers(spec: ModelSpec, **changes: int) -> ModelSpec:
    other = replace(spec.layers[0], ffn=replace(spec.layers[0].ffn, **changes))
    return replace(spec, layers=(other, *spec.layers[1:]))


def test_models_that_have_no_trace_are_refused(tiny: dict[str, Path]) -> None:
    spec = Checkpoint.open(tiny["mixtral"]).spec
    dense = replace(spec, layers=tuple(replace(s, ffn=replace(s.ffn, num_experts=0, top_k=0)) for s in spec.layers))
    with pytest.raises(WorkloadError, match="0 kinds of MoE layers"):
        RoutingRecorder().bind(dense)
    with pytest.raises(WorkloadError, match="2 kinds of MoE layers"):
        RoutingRecorder().bind(with_layers(spec, num_experts=8))
    recorder = RoutingRecorder()
    recorder.bind(spec)
    with pytest.raises(WorkloadError, match="take a new one"):
        recorder.bind(replace(spec, name="other"))


# --- hrm run --trace-routing ---


def run_command(folder: Path, *more: str) -> list[str]:
    arguments = ["run", "--device", "cpu", "--synthetic", str(folder / "config.json"), "--policy"]
    return [*arguments, str(folder / "policy.yaml"), "--trace-routing", str(folder / "routing.npz"), *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fake_engine.write_config(tmp_path / "config.json")
    fake_engine.write_policy(tmp_path / "policy.yaml")
    return tmp_path


def test_run_writes_the_trace_numbered_by_place_in_the_input(folder: Path) -> None:
    lines = [{"prompt_tokens": [5, 6, 7 + i], "max_tokens": 3, "id": f"q{i}"} for i in range(5)]
    lines[1]["prompt_tokens"] = [4000]  # no such token: refused
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ("--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"))
    done = CliRunner().invoke(app, run_command(folder, *files), catch_exceptions=False)
    assert done.exit_code == 0 and "20 tokens of 4 requests" in done.output
    trace = load_routing_trace(folder / "routing.npz", None)
    assert trace.tokens is not None and sorted(set(trace.prompt.tolist())) == [0, 2, 3, 4]
    assert [int(trace.tokens[trace.prompt == i][2]) for i in (0, 2, 3, 4)] == [7, 9, 10, 11]
    resumed = CliRunner().invoke(app, run_command(folder, *files, "--resume"))
    assert isinstance(resumed.exception, HrmError) and "--resume runs only the rest" in str(resumed.exception)
    (folder / "routing.npz").unlink()
    resumed = CliRunner().invoke(app, run_command(folder, *files, "--resume"), catch_exceptions=False)
    assert "is not written: no pass was run" in resumed.output and not (folder / "routing.npz").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, HrmError])
def test_a_run_that_ends_early_writes_what_it_ran(
    tiny: dict[str, Path], tmp_path: Path, error: type[BaseException]
) -> None:
    path, source = tmp_path / "routing.npz", Checkpoint.open(tiny["mixtral"])
    with pytest.raises(error), recorded_routing(path) as recorder:
        assert recorder is not None
        recorder.numbers = {f"r{i}": 10 + i for i in range(4)}
        with Engine(source, POLICIES["cgopipe"], device="cpu", recorder=recorder) as engine:
            for _ in engine.generate(ragged(4)):
                raise error
    trace = load_routing_trace(path, source.spec)
    assert sorted(set(trace.prompt.tolist())) == [10, 11, 12, 13]


def test_another_suffix_is_refused(folder: Path) -> None:
    arguments = [*run_command(folder)[:-1], str(folder / "routing.json")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, HrmError) and "end the name in .npz" in str(done.exception)

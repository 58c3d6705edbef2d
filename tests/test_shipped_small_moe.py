"""The shipped small MoE: checkpoint, traces and predictor belong together, and the predictor is worth having."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_policies import RESIDENT, make_policy

from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.engine import Engine
from runtime.experts.predictor_baselines import token_lookup
from runtime.experts.predictor_data import prompt_rows
from runtime.experts.predictor_file import LoadedPredictor, load_predictor
from runtime.experts.predictor_inference import predict_trace
from runtime.experts.predictor_metrics import measure_quality
from runtime.experts.predictor_settings import check_target, target_of
from runtime.experts.recorder import RoutingRecorder
from runtime.requests.request import Completion, Request, Sampling

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FOLDER = BENCHMARKS / "small_moe"
MOST_BYTES = 20e6  # of the folder: what a clone pays for it
PUBLISHED = BENCHMARKS / "results" / "predictor_small_moe.json"  # hrm predictor evaluate, command in docs/predictor.md
PROMPTS = 8


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(FOLDER, torch.float32)


@pytest.fixture(scope="module")
def loaded() -> LoadedPredictor:
    return load_predictor(FOLDER / "predictor.safetensors", torch.device("cpu"))


def shipped_trace(name: str, checkpoint: Checkpoint) -> RoutingTrace:
    return load_routing_trace(FOLDER / "traces" / f"{name}.npz", checkpoint.spec)


def test_the_folder_is_small_and_says_how_it_was_made() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    record = json.loads((FOLDER / "training.json").read_text())
    assert record["machine"]["gpu"] == "NVIDIA H200" and record["settings"]["minutes"] == 4.0
    losses, unigram = record["held_out_loss"], record["held_out_unigram_entropy"]
    assert len(losses) == 8 and all(loss < 0.5 * unigram[name] for name, loss in losses.items())


def test_the_engine_routes_prompts_as_the_shipped_trace_says(checkpoint: Checkpoint) -> None:
    """Prompts only: what is sampled behind them may differ by rounding on another machine, and so may near ties."""
    trace = shipped_trace("test", checkpoint)
    assert trace.tokens is not None
    rows = [each[trace.step[each] == 0] for each in prompt_rows(trace)[:PROMPTS]]
    requests = [Request(str(i), tuple(trace.tokens[r].tolist()), Sampling(1)) for i, r in enumerate(rows)]
    recorder = RoutingRecorder()
    policy = make_policy("flexgen", PROMPTS, 1, **RESIDENT, weights_on_gpu=1.0)
    with Engine(checkpoint, policy, device="cpu", recorder=recorder) as engine:
        assert all(isinstance(done, Completion) for done in engine.generate(requests))
    found = recorder.trace()
    assert found is not None
    again = np.concatenate([found.experts[each] for each in prompt_rows(found)])
    shipped = trace.experts[np.concatenate(rows)]
    assert again.shape == shipped.shape
    assert (np.sort(again) == np.sort(shipped)).all(axis=-1).mean() > 0.995


def test_the_traces_are_of_different_prompts_of_every_domain(checkpoint: Checkpoint) -> None:
    train, test = (shipped_trace(name, checkpoint) for name in ("train", "test"))
    assert train.tokens is not None and test.tokens is not None
    train_tokens, test_tokens = train.tokens, test.tokens
    known = {train_tokens[rows[:32]].tobytes() for rows in prompt_rows(train)}
    assert not any(test_tokens[rows[:32]].tobytes() in known for rows in prompt_rows(test))
    for name, prompts in (("train", 1000), ("test", 200)):
        labels = json.loads((FOLDER / "traces" / f"{name}.json").read_text())["domain_of_prompt"]
        assert len(labels) == prompts and len(set(labels)) == 8


def test_the_predictor_is_accepted_for_the_model_and_beats_the_lookup(
    checkpoint: Checkpoint, loaded: LoadedPredictor
) -> None:
    """Golden: the published evaluation of the same files. Recall with top-k predicted is precision, too."""
    train, test = (shipped_trace(name, checkpoint) for name in ("train", "test"))
    assert loaded.predictor.target == target_of(checkpoint.spec)
    for trace in (train, test):
        check_target(trace, loaded.predictor.target)
    published = json.loads(PUBLISHED.read_text())
    assert loaded.trained_on.model_dump() == published["trained_on"]
    mine, lookup = (
        measure_quality(found, test, 0.5, (4,))
        for found in (predict_trace(loaded.predictor, test).now, token_lookup(train, test))
    )
    assert mine.top_k.recall > lookup.top_k.recall + 0.05
    assert min(np.subtract(mine.top_k.layer_recall, lookup.top_k.layer_recall)) > 0
    for name, quality in (("predictor", mine), ("token lookup", lookup)):
        assert quality.top_k.recall == pytest.approx(published["methods"][name]["top_k"]["recall"], abs=0.002)

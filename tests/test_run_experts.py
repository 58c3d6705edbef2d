"""`hrm run --predictor --token-scheduler`: who is refused, and that predictions are made once and change no token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Invoke
from numpy.typing import NDArray
from runtime_policies import RESIDENT, make_policy
from tiny_checkpoints import save_tiny

import runtime.experts.last_paths as last_paths_module
from hrm.errors import CheckpointError, HrmError, PolicyError
from hrm.spec.policy import Policy
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.cli.run_experts import expert_options
from runtime.cli.run_options import RunOptions
from runtime.engine import Engine
from runtime.experts.forecast import PathForecast
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_file import TrainedOn, save_predictor
from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget, target_of
from runtime.experts.units import Units
from runtime.requests.request import Completion, Sampling

SMALL = PredictorSettings(hidden_size=16, ffn_size=32, num_heads=2, head_dim=8, window=16, token_rank=0)
SEEN = TrainedOn(
    trace="0", prompts=1, tokens=1, without_domain=None, options={}, best_epoch=0, validation_loss=1.0,
    validation_recall=0.5, following_recall=0.25,
)  # fmt: skip
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14], [20, 21]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("mixtral")
    save_tiny("mixtral", directory)
    return Checkpoint.open(directory)


def cached(kind: str) -> Policy:
    return make_policy("expert_cache", 2, 1, weights_on_gpu=0.5, expert_cache=kind, **RESIDENT)


def options(predictor: Path | None, token_scheduler: bool = False) -> RunOptions:
    words: dict[str, object] = dict.fromkeys(RunOptions.__dataclass_fields__)
    return RunOptions(**{**words, "predictor": predictor, "token_scheduler": token_scheduler})  # type: ignore[arg-type]


@pytest.fixture
def saved(model: Checkpoint, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "predictor.safetensors"
    save_predictor(RoutingPredictor(target_of(model.spec), SMALL), SEEN, path)
    return path


def test_nothing_asked_for(model: Checkpoint) -> None:
    assert expert_options(options(None), model.spec, cached("lru"), "cpu") == {}


def test_a_policy_without_a_cache_to_fill_ahead_is_refused(model: Checkpoint, saved: Path) -> None:
    for policy in (cached("lru"), make_policy("cgopipe", 3, 3)):
        with pytest.raises(PolicyError, match="nothing is predicted for"):
            expert_options(options(saved), model.spec, policy, "cpu")


def test_a_predictor_of_another_model_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    own = target_of(model.spec)
    for other in (own.model_copy(update={"num_experts": 9}), own.model_copy(update={"model": "other"})):
        path = tmp_path / "other.safetensors"
        save_predictor(RoutingPredictor(PredictorTarget.model_validate(other.model_dump()), SMALL), SEEN, path)
        with pytest.raises(HrmError, match="hrm predictor train"):
            expert_options(options(path), model.spec, cached("predictive"), "cpu")
    with pytest.raises(CheckpointError, match="no such file"):
        expert_options(options(tmp_path / "none"), model.spec, cached("predictive"), "cpu")


def answers(model: Checkpoint, policy: Policy, **told: object) -> list[tuple[int, ...]]:
    with Engine(model, policy, device="cpu", **told) as engine:  # type: ignore[arg-type]
        done = engine.generate(PROMPTS, Sampling(5, ignore_eos=True))
        found = {int(d.request.request_id): d.tokens for d in done if isinstance(d, Completion)}
    return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("token_scheduler", [False, True])
def test_predictions_are_made_once_and_change_no_token(
    model: Checkpoint, saved: Path, token_scheduler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = expert_options(options(saved, token_scheduler), model.spec, cached("predictive"), "cpu")
    assert isinstance(told["forecast"], PathForecast) and isinstance(told["units"], Units) == token_scheduler
    predicted: list[tuple[int, ...]] = []
    real = last_paths_module.predict_paths

    def counts(predictor: RoutingPredictor, sequences: list[NDArray[np.int64]], last_only: bool) -> object:
        predicted.extend(tuple(map(int, sequence)) for sequence in sequences)
        return real(predictor, sequences, last_only)

    monkeypatch.setattr(last_paths_module, "predict_paths", counts)
    assert answers(model, cached("predictive"), **told) == answers(model, cached("lru"))
    assert len(predicted) == len(set(predicted)) == 4 * len(PROMPTS)  # each token but the last is the next pass's input
    assert all(any(sequence[: len(p)] == tuple(p) for p in PROMPTS) for sequence in predicted)


def test_a_token_scheduler_needs_a_predictor(hrm: Invoke) -> None:
    code, _, err = hrm(
        "run", "--synthetic", "mixtral-tiny", "--num-requests", "1", "--profile", "t4", "--token-scheduler"
    )
    assert code == 1 and "--token-scheduler goes by predicted paths" in err

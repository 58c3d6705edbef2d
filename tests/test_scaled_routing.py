"""Recorded routing carried over to larger models: as many choices, all different, probabilities that sum to them."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hrm.errors import WorkloadError
from hrm.predict.cache_replay import true_predictions
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_demand import first_prompts
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module under test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scaled_routing")


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    """Eight prompts of 32 experts, top-2."""
    return first_prompts(load_routing_trace(BENCHMARKS / "small_moe" / "traces" / "test.npz", None), 8)[0]


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(8, 32, 2), (12, 128, 8), (48, 128, 2), (12, 128, 1)])
def test_choices_and_probabilities_of_a_larger_model(
    scaled: ModuleType, trace: RoutingTrace, layers: int, experts: int, top_k: int
) -> None:
    truth = true_predictions(trace)
    assert truth.following is not None
    said = PathPredictions((0.5 * truth.now).astype(np.float32), (0.25 * truth.following).astype(np.float32))
    scale = scaled.scale_of(trace, layers, experts, top_k)
    replay, lengths = scaled.scaled_replay(trace, said, scale, 2)
    for name, length in zip(("0", "1"), lengths, strict=True):
        chosen, predicted = replay.experts[name], replay.predictions[name]
        assert chosen.shape == (length, layers, top_k) and 0 <= chosen.min() <= chosen.max() < experts
        assert all(len(set(row)) == top_k for row in chosen.reshape(-1, top_k).tolist())
        assert predicted.now.shape == predicted.following.shape == (length, layers, experts)
        np.testing.assert_allclose(predicted.now.sum(axis=2), 0.5 * top_k, atol=0.01)
        np.testing.assert_allclose(predicted.following[:-1].sum(axis=2), 0.25 * top_k, atol=0.01)


def test_models_that_the_recording_cannot_stand_for(scaled: ModuleType, trace: RoutingTrace) -> None:
    for experts, top_k in ((60, 4), (64, 8), (128, 3)):
        with pytest.raises(WorkloadError, match="cannot stand for"):
            scaled.scale_of(trace, 8, experts, top_k)

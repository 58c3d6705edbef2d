"""Evaluates a routing-path predictor on a trace, beside the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing_predictions import trace_checksum
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor, predictor_bytes
from runtime.experts.predictor_baselines import BASELINES
from runtime.experts.predictor_file import LoadedPredictor, TrainedOn
from runtime.experts.predictor_metrics import Quality, measure_quality

BATCH_SIZES = (4, 16)
PREDICTOR = "predictor"


@dataclass(frozen=True)
class Evaluation:
    """Quality by method, the predictor first. seen: the predictor was trained on this very trace."""

    model: str
    tokens: int
    prompts: int
    threshold: float
    parameters: int
    bytes: int
    trained_on: TrainedOn
    seen: bool
    methods: dict[str, Quality]


def evaluate_predictor(
    loaded: LoadedPredictor,
    probabilities: NDArray[np.floating[Any]],
    test: RoutingTrace,
    train: RoutingTrace | None,
    threshold: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Evaluation:
    """probabilities: the predictor's, of the test trace. Baselines are counted on `train`; None: without them.

    Raises:
        WorkloadError: see `measure_quality`; a training trace without token ids.
    """
    methods = {PREDICTOR: measure_quality(probabilities, test, threshold, batch_sizes)}
    for name, baseline in BASELINES.items() if train is not None else ():
        assert train is not None
        methods[name] = measure_quality(baseline(train, test), test, threshold, batch_sizes)
    predictor, prompts = loaded.predictor, len(np.unique(test.prompt))
    seen = trace_checksum(test) == loaded.trained_on.trace
    return Evaluation(
        test.model, len(test.experts), prompts, threshold, _parameters(predictor), predictor_bytes(predictor),
        loaded.trained_on, seen, methods,
    )  # fmt: skip


def _parameters(predictor: RoutingPredictor) -> int:
    return sum(weight.numel() for weight in predictor.parameters())

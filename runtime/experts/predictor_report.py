"""Evaluates a routing-path predictor on a trace, beside the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_predictions import trace_checksum
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor, predictor_bytes
from runtime.experts.predictor_baselines import BASELINES
from runtime.experts.predictor_data import followed_rows
from runtime.experts.predictor_file import LoadedPredictor, TrainedOn
from runtime.experts.predictor_metrics import Quality, SetAccuracy, measure_quality, top_k_accuracy
from runtime.experts.predictor_speed import forecast_seconds

BATCH_SIZES = (4, 16)
PREDICTOR = "predictor"
BY_TOKEN = ("layer frequency", "token lookup")  # baselines that know no expert of the token they are asked about


@dataclass(frozen=True)
class Evaluation:
    """Quality by method, the predictor first. seen: the predictor was trained on this very trace. following: of the
    experts of the token behind each, with top_k predicted. forecast_seconds: by batch size, what predicting a decode
    pass takes on this machine.
    """

    model: str
    tokens: int
    prompts: int
    threshold: float
    parameters: int
    bytes: int
    trained_on: TrainedOn
    seen: bool
    methods: dict[str, Quality]
    following: dict[str, SetAccuracy]
    forecast_seconds: dict[int, float]


def evaluate_predictor(
    loaded: LoadedPredictor,
    predictions: PathPredictions,
    test: RoutingTrace,
    train: RoutingTrace | None,
    threshold: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Evaluation:
    """predictions: the predictor's, of the test trace. Baselines are counted on `train`; None: without them.

    Raises:
        WorkloadError: see `measure_quality`; a training trace without token ids.
    """
    methods = {PREDICTOR: measure_quality(predictions.now, test, threshold, batch_sizes)}
    for name, baseline in BASELINES.items() if train is not None else ():
        assert train is not None
        methods[name] = measure_quality(baseline(train, test), test, threshold, batch_sizes)
    predictor, prompts = loaded.predictor, len(np.unique(test.prompt))
    seen = trace_checksum(test) == loaded.trained_on.trace
    return Evaluation(
        test.model, len(test.experts), prompts, threshold, _parameters(predictor), predictor_bytes(predictor),
        loaded.trained_on, seen, methods, _following(predictions, test, train),
        forecast_seconds(predictor, test, batch_sizes),
    )  # fmt: skip


def _following(predictions: PathPredictions, test: RoutingTrace, train: RoutingTrace | None) -> dict[str, SetAccuracy]:
    """The baselines that count by token are counted on what followed in training."""
    asked, rows = followed_rows(test)
    if not len(rows) or predictions.following is None:
        return {}
    found = {PREDICTOR: top_k_accuracy(predictions.following[rows], asked)}
    counted = None if train is None else followed_rows(train)[0]
    if counted is not None and len(counted.prompt):
        found |= {name: top_k_accuracy(BASELINES[name](counted, asked), asked) for name in BY_TOKEN}
    return found


def _parameters(predictor: RoutingPredictor) -> int:
    return sum(weight.numel() for weight in predictor.parameters())

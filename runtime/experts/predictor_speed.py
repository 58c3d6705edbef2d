"""How long a routing-path predictor takes before a decode pass."""

import statistics
import time
from collections.abc import Sequence

from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_data import prompt_rows
from runtime.experts.predictor_inference import Ids, predict_paths
from runtime.experts.predictor_settings import token_ids

REPEATS = 5


def forecast_seconds(predictor: RoutingPredictor, trace: RoutingTrace, batch_sizes: Sequence[int]) -> dict[int, float]:
    """By batch size, the median of some predictions of the last tokens of so many of the trace's prompts, whole with
    what was generated (the longest that a run reaches), on the predictor's device.

    Raises:
        WorkloadError: a trace without token ids.
    """
    tokens = token_ids(trace)
    sequences = [tokens[rows] for rows in prompt_rows(trace)]
    found = {}
    for size in batch_sizes:
        batch = [sequences[i % len(sequences)] for i in range(size)]
        predict_paths(predictor, batch, last_only=True)  # kernels are chosen, memory is taken
        found[size] = statistics.median(_seconds(predictor, batch) for _ in range(REPEATS))
    return found


def _seconds(predictor: RoutingPredictor, batch: Sequence[Ids]) -> float:
    began = time.perf_counter()
    predict_paths(predictor, batch, last_only=True)
    return time.perf_counter() - began

"""How good predicted routing is: of single tokens, and of the experts that a batch touches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.decode_passes import batched_passes
from hrm.predict.routing_trace import RoutingTrace

Probabilities = NDArray[np.floating[Any]]
_CHUNK = 4096  # rows at a time; masks of all experts are larger than the choices


@dataclass(frozen=True)
class SetAccuracy:
    """Predicted sets of experts against the chosen ones, as ratios of totals: over all layers and for each.

    recall: predicted share of what was chosen. precision: chosen share of what was predicted (0 where nothing was).
    jaccard: both over either.
    """

    recall: float
    precision: float
    jaccard: float
    layer_recall: tuple[float, ...]
    layer_precision: tuple[float, ...]
    layer_jaccard: tuple[float, ...]


@dataclass(frozen=True)
class ActiveSets:
    """Experts that decode passes touch, predicted from the tokens' probabilities. Recall alone rewards predicting all.

    top_k: the union of each token's top_k most probable. threshold: the probability that some token chooses the expert,
    tokens taken as independent, is at least the threshold. touched, predicted (by top_k): mean experts per layer and
    pass.
    """

    batch_size: int
    passes: int
    touched: float
    predicted: float
    top_k: SetAccuracy
    threshold: SetAccuracy


@dataclass(frozen=True)
class Quality:
    """Of one way to predict. With top_k as many are predicted as chosen: recall and precision are the same number."""

    top_k: SetAccuracy
    threshold: SetAccuracy
    active: tuple[ActiveSets, ...]


def measure_quality(
    probabilities: Probabilities, trace: RoutingTrace, threshold: float, batch_sizes: Sequence[int]
) -> Quality:
    """probabilities [T, L, E], row by row those of the trace. Single tokens: prefill and decode; batches: decode.

    Raises:
        WorkloadError: probabilities of another shape, a threshold outside (0, 1], a batch the trace has no prompts for.
    """
    wanted = (*trace.experts.shape[:2], trace.num_experts)
    if probabilities.shape != wanted:
        raise WorkloadError(
            f"predictions: have shape {probabilities.shape}, the trace needs {wanted}; predict it again"
        )
    if not 0 < threshold <= 1:
        raise WorkloadError(f"predictions: threshold {threshold} must lie in (0, 1]")
    top_k, above = _token_counts(probabilities, trace, threshold)
    active = tuple(measure_active_sets(probabilities, trace, threshold, size) for size in batch_sizes)
    return Quality(accuracy(top_k), accuracy(above), active)


def top_k_mask(probabilities: Probabilities, top_k: int) -> NDArray[np.bool_]:
    """The `top_k` most probable of the last axis, ties in any order: as probabilities."""
    best = np.argpartition(probabilities, -top_k, axis=-1)[..., -top_k:]
    return chosen_mask(best, probabilities.shape[-1])


def chosen_mask(experts: NDArray[np.integer[Any]], num_experts: int) -> NDArray[np.bool_]:
    """experts [..., k] -> [..., E]."""
    mask = np.zeros((*experts.shape[:-1], num_experts), np.bool_)
    np.put_along_axis(mask, experts.astype(np.int64), True, axis=-1)
    return mask


class Counts:
    """Sums of what was chosen, predicted and both, per layer."""

    def __init__(self, num_layers: int) -> None:
        self.both, self.predicted, self.chosen = np.zeros((3, num_layers), np.int64)

    def add(self, predicted: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> None:
        """predicted, chosen [N, L, E]."""
        self.both += (predicted & chosen).sum(axis=(0, 2))
        self.predicted += predicted.sum(axis=(0, 2))
        self.chosen += chosen.sum(axis=(0, 2))


def accuracy(counts: Counts) -> SetAccuracy:
    """Ratios of totals; what is divided by nothing is 0."""
    both, predicted, chosen = counts.both, counts.predicted, counts.chosen
    parts = [(both, chosen), (both, predicted), (both, predicted + chosen - both)]
    overall = [_ratio(a.sum(keepdims=True), b.sum(keepdims=True))[0] for a, b in parts]
    layers = [_ratio(a, b) for a, b in parts]
    return SetAccuracy(overall[0], overall[1], overall[2], layers[0], layers[1], layers[2])


def top_k_accuracy(probabilities: Probabilities, trace: RoutingTrace) -> SetAccuracy:
    """Of single tokens, with top_k predicted; probabilities [T, L, E], row by row those of the trace."""
    best, _ = _token_counts(probabilities, trace, threshold=1.0)
    return accuracy(best)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple((part / np.maximum(whole, 1)).tolist())


def _token_counts(probabilities: Probabilities, trace: RoutingTrace, threshold: float) -> tuple[Counts, Counts]:
    tokens, layers, top_k = trace.experts.shape
    best, above = Counts(layers), Counts(layers)
    for begin in range(0, tokens, _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        chosen = chosen_mask(trace.experts[rows], trace.num_experts)
        best.add(top_k_mask(probabilities[rows], top_k), chosen)
        above.add(probabilities[rows] >= threshold, chosen)
    return best, above


def measure_active_sets(
    probabilities: Probabilities, trace: RoutingTrace, threshold: float, batch_size: int
) -> ActiveSets:
    """Batches of prompts in order of their numbers, a pass for each decode step; a prompt that ends leaves its batch, a
    last, incomplete batch is left out.

    Raises:
        WorkloadError: fewer prompts with decode steps than a batch.
    """
    layers, top_k = trace.experts.shape[1:]
    best, above, passes = Counts(layers), Counts(layers), 0
    for rows in pass_rows(trace, batch_size):
        chosen = _union(chosen_mask(trace.experts[rows], trace.num_experts))  # [1, L, E]
        found = probabilities[rows].astype(np.float64)  # [B, L, E]
        best.add(_union(top_k_mask(found, top_k)), chosen)
        above.add(1 - np.prod(1 - found, axis=0, keepdims=True) >= threshold, chosen)
        passes += 1
    each = passes * layers
    touched, predicted = float(best.chosen.sum()) / each, float(best.predicted.sum()) / each
    return ActiveSets(batch_size, passes, touched, predicted, accuracy(best), accuracy(above))


def _union(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """masks [B, L, E] -> [1, L, E]."""
    union: NDArray[np.bool_] = np.logical_or.reduce(masks, axis=0)
    return union[None]


def pass_rows(trace: RoutingTrace, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Rows of every decode pass; see `measure_active_sets`.

    Raises:
        WorkloadError: see there.
    """
    return batched_passes(trace, batch_size).batches()

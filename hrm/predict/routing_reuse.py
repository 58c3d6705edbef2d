"""Distinct experts per pass, and how many passes lie between two uses of an expert."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing_demand import PassDemand
from hrm.roofline.linear import expected_distinct_experts


@dataclass(frozen=True)
class DistinctExperts:
    """Experts that a pass touches, mean over passes. tokens: of a pass; prompts that end leave their batch.

    measured, independent: by layer. independent: of tokens that choose independently, each expert as often as measured
    in its layer. uniform: each expert equally often.
    """

    batch_size: int
    tokens: float
    measured: tuple[float, ...]
    independent: tuple[float, ...]
    uniform: float


@dataclass(frozen=True)
class ReuseDistance:
    """Passes since an expert's last use, over all layers and all batches one after the other.

    distances: 1, 2, 4, ...; within: share of the repeated uses that come within so many passes; independent: the same
    of tokens that choose independently with each layer's frequencies. first: share of all uses that are an
    expert's first.
    """

    batch_size: int
    distances: tuple[int, ...]
    within: tuple[float, ...]
    independent: tuple[float, ...]
    first: float


def distinct_experts(demand: PassDemand, top_k: int) -> DistinctExperts:
    """Measured beside the two formulas, each at the tokens that every pass has."""
    measured = demand.touched.sum(axis=2).mean(axis=0)
    independent = demand.touch_probability().sum(axis=1)
    uniform = expected_distinct_experts(demand.chosen.shape[1], top_k, demand.tokens.astype(float))
    tokens = float(demand.tokens.mean())
    return DistinctExperts(
        demand.batch_size, tokens, tuple(measured.tolist()), tuple(independent.tolist()), float(np.mean(uniform))
    )


def reuse_distance(demand: PassDemand) -> ReuseDistance:
    """Of one demand."""
    passes = len(demand.touched)
    counts, first = np.zeros(passes + 1, np.int64), 0
    for layer in demand.touched.swapaxes(0, 1):  # [passes, E]
        found = _gaps(layer)
        counts += np.bincount(found, minlength=passes + 1)
        first += int(layer.any(axis=0).sum())
    distances = 2 ** np.arange(max(1, (passes - 1).bit_length()))
    repeated, chance = max(1, int(counts.sum())), demand.touch_probability()
    within = [counts[: distance + 1].sum() / repeated for distance in distances.tolist()]
    independent = [(chance * (1 - (1 - chance) ** d)).sum() / chance.sum() for d in distances.tolist()]
    return ReuseDistance(
        demand.batch_size,
        tuple(distances.tolist()),
        tuple(float(x) for x in within),
        tuple(float(x) for x in independent),
        first / max(1, first + int(counts.sum())),
    )


def _gaps(touched: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of every use but an expert's first, the passes since the one before; touched [passes, E]."""
    expert, pass_number = np.nonzero(touched.T)
    same = expert[1:] == expert[:-1]
    gaps: NDArray[np.int64] = np.diff(pass_number)[same]
    return gaps

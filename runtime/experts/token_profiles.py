"""What counting says of each token id: a short vector that a routing-path predictor reads beside the id."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor_baselines import Probabilities, count_experts, layer_frequencies, smoothed_shares
from runtime.experts.predictor_data import prompt_rows
from runtime.experts.predictor_settings import token_ids

_LEAST = 1e-4  # probability; log-odds of 0 are infinite
_OVERSAMPLING = 8


@dataclass(frozen=True, eq=False)
class TokenProfiles:
    """table [V, rank + 1]: how an id's expert frequencies differ from its layers', in log-odds, in the coordinates of
    `basis`; last, the logarithm of its count. All 0 for an id not seen.

    rows [T, rank + 1]: the same for every row of the training trace, counted without the row's own prompt. Training
    reads these, or it would trust counts that hold the answer. basis [L E, rank]: coordinates times basis approximate
    the differences best, ids weighted by their counts.
    """

    table: NDArray[np.float32]
    rows: NDArray[np.float32]
    basis: NDArray[np.float32]


def token_profiles(trace: RoutingTrace, vocab_size: int, rank: int, seed: int) -> TokenProfiles:
    """Profiles counted on a trace, rank >= 1.

    Raises:
        WorkloadError: a trace without token ids.
    """
    ids, place, counts = np.unique(token_ids(trace), return_inverse=True, return_counts=True)
    prior = layer_frequencies(trace)
    sums = _count(trace.experts, place, len(ids), trace.num_experts)  # [N, L, E]
    own = _differences(sums, counts, prior)  # [N, L E]
    basis = _basis(np.sqrt(counts)[:, None] * own, rank, seed)
    scale = np.sqrt(np.average(np.square(own @ basis).mean(1), weights=counts)) + 1e-6
    table = np.zeros((vocab_size, rank + 1), np.float32)
    table[ids] = _coordinates(own, counts, basis / scale)
    rows = np.zeros((len(trace.experts), rank + 1), np.float32)
    for inside, others, left in _without_prompt(trace, place, sums, counts):
        rows[inside] = _coordinates(_differences(others, left, prior), left, basis / scale)
    return TokenProfiles(table, rows, (basis * scale).astype(np.float32))


def _count(
    experts: NDArray[np.integer[Any]], group: NDArray[np.integer[Any]], groups: int, num_experts: int
) -> NDArray[np.float32]:
    """experts [T, L, k], group [T] -> how often a group's tokens chose each expert, [groups, L, E]."""
    layers = [count_experts(experts[:, i], group, groups, num_experts) for i in range(experts.shape[1])]
    return np.stack(layers, axis=1).astype(np.float32)


def _without_prompt(
    trace: RoutingTrace, place: NDArray[np.integer[Any]], sums: NDArray[np.float32], counts: NDArray[np.integer[Any]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.integer[Any]]]]:
    """For every prompt (its rows [S]; for each the sums [S, L, E] and the count [S] of its id in other prompts)."""
    for rows in prompt_rows(trace):
        ids, local, inside = np.unique(place[rows], return_inverse=True, return_counts=True)
        others = sums[ids] - _count(trace.experts[rows], local, len(ids), trace.num_experts)
        yield rows, others[local], (counts[ids] - inside)[local]


def _differences(
    sums: NDArray[np.float32], counts: NDArray[np.integer[Any]], prior: Probabilities
) -> NDArray[np.float32]:
    """[N, L E]; 0 where the count is 0."""
    shares = smoothed_shares(sums, counts[:, None, None], prior)
    return (log_odds(shares) - log_odds(prior)).reshape(len(sums), -1)


def log_odds(shares: Probabilities) -> NDArray[np.float32]:
    """Finite ones: shares of 0 and 1 are taken as almost so."""
    inside = np.clip(shares, _LEAST, 1 - _LEAST)
    odds: NDArray[np.float32] = np.log(inside / (1 - inside)).astype(np.float32)
    return odds


def _coordinates(
    own: NDArray[np.float32], counts: NDArray[np.integer[Any]], basis: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.concatenate((own @ basis, np.log1p(counts)[:, None]), axis=1).astype(np.float32)


def _basis(matrix: NDArray[np.floating[Any]], rank: int, seed: int) -> NDArray[np.float32]:
    """Leading right singular vectors [columns, rank] by random projection (Halko et al., arXiv 0909.4061, algorithm
    4.4), with columns of 0 where the matrix has fewer.
    """
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    found = np.random.default_rng(seed).normal(size=(matrix.shape[1], width))
    for _ in range(4):
        found = np.linalg.qr(matrix.T @ (matrix @ found))[0]
    _, _, right = np.linalg.svd(matrix @ found, full_matrices=False)
    best = (found @ right.T)[:, :rank]
    return np.pad(best, ((0, 0), (0, rank - best.shape[1]))).astype(np.float32)

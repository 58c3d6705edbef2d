"""Training data of a routing-path predictor, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.decode_passes import rows_behind
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_data import batches_by_length, prompt_rows, window_spans
from runtime.experts.predictor_inference import Piece, pad_pieces
from runtime.experts.predictor_settings import token_ids


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """A trace, and profiles of its rows [T, P] where those of the ids do not do."""

    trace: RoutingTrace
    profiles: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Padded windows; `wanted` rows are predicted, the others are context or padding."""

    tokens: Tensor  # [B, S]
    profiles: Tensor | None  # [B, S, P]
    wanted: Tensor  # [B, S]
    experts: Tensor  # [T, L, k], of the wanted rows
    followed: Tensor  # [T], which of them have a row behind them
    following: Tensor  # [F, L, k], of the rows behind those


def training_batches(
    data: TrainingRows, predictor: RoutingPredictor, batch_tokens: int, rng: np.random.Generator | None
) -> Iterator[TrainingBatch]:
    """All rows once, in batches of similar length; in random order where there is a generator."""
    tokens, behind = token_ids(data.trace), rows_behind(data.trace)
    pieces: list[tuple[NDArray[np.int64], Piece]] = []  # (rows of the prompt, its ids and a span)
    for rows in prompt_rows(data.trace):
        pieces += [(rows, (tokens[rows], span)) for span in window_spans(len(rows), predictor.settings.window)]
    order = np.arange(len(pieces)) if rng is None else rng.permutation(len(pieces))
    lengths = [span.end - span.begin for _, (_, span) in pieces]
    batches = batches_by_length(lengths, batch_tokens, order.tolist())
    for i in range(len(batches)) if rng is None else rng.permutation(len(batches)):
        yield _batch(data, behind, [pieces[j] for j in batches[i]], predictor.device)


def _batch(
    data: TrainingRows,
    behind: NDArray[np.intp],
    pieces: Sequence[tuple[NDArray[np.int64], Piece]],
    device: torch.device,
) -> TrainingBatch:
    tokens, wanted = pad_pieces([piece for _, piece in pieces], device)
    profiles = None
    if data.profiles is not None:
        padded = np.zeros((*tokens.shape, data.profiles.shape[1]), np.float32)
        for i, (rows, (_, span)) in enumerate(pieces):
            padded[i, : span.end - span.begin] = data.profiles[rows[span.begin : span.end]]
        profiles = torch.from_numpy(padded).to(device)
    predicted = np.concatenate([rows[span.first : span.end] for rows, (_, span) in pieces])
    next_rows = behind[predicted]
    followed = next_rows >= 0
    experts, following = (
        torch.from_numpy(data.trace.experts[rows].astype(np.int64)).to(device)
        for rows in (predicted, next_rows[followed])
    )
    return TrainingBatch(tokens, profiles, wanted, experts, torch.from_numpy(followed).to(device), following)

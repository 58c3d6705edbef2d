"""Runs a routing-path predictor over sequences and traces: batched, padded, windowed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hrm.errors import HrmError
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_data import Span, batches_by_length, prompt_rows, window_spans
from runtime.experts.predictor_settings import check_target, token_ids

BATCH_TOKENS = 16384  # of one forward pass, padding included

Ids = Sequence[int] | NDArray[np.integer[Any]]
Piece = tuple[NDArray[np.integer[Any]], Span]  # token ids of a sequence, and part of it


def predict_paths(
    predictor: RoutingPredictor, sequences: Sequence[Ids], last_only: bool, batch_tokens: int = BATCH_TOKENS
) -> PathPredictions:
    """Of every sequence's last token, [B, L, E]; or with last_only=False of all tokens, one sequence after the other,
    [T, L, E]. In fp32.

    A last token sees the window's tokens up to itself; all tokens of a sequence longer than the window, `window_spans`.

    Raises:
        HrmError: an empty sequence, or a token id outside the vocabulary.
    """
    pieces = _pieces(predictor, sequences, last_only)
    target = predictor.target
    counts = [span.end - span.first for _, span in pieces]
    now, following = np.empty((2, sum(counts), target.num_moe_layers, target.num_experts), np.float32)
    begins = np.cumsum([0, *counts])
    was_training = predictor.training
    predictor.eval()
    try:
        for batch in batches_by_length([s.end - s.begin for _, s in pieces], batch_tokens, range(len(pieces))):
            found = _predict_batch(predictor, [pieces[i] for i in batch])
            ends = np.cumsum([counts[i] for i in batch])[:-1]
            for out, values in zip((now, following), found, strict=True):
                for i, rows in zip(batch, np.split(values, ends), strict=True):
                    out[begins[i] : begins[i + 1]] = rows
    finally:
        predictor.train(was_training)
    return PathPredictions(now, following)


def predict_trace(predictor: RoutingPredictor, trace: RoutingTrace) -> PathPredictions:
    """Row by row of the trace, in fp16; row t uses tokens of its prompt up to t only.

    Raises:
        WorkloadError: a trace of another model, without token ids, or with rows out of order.
    """
    check_target(trace, predictor.target)
    tokens, target = token_ids(trace), predictor.target
    now, following = np.empty((2, len(tokens), target.num_moe_layers, target.num_experts), np.float16)
    for rows in _grouped(prompt_rows(trace)):
        found = predict_paths(predictor, [tokens[r] for r in rows], last_only=False)
        now[np.concatenate(rows)], following[np.concatenate(rows)] = found.now, found.following
    return PathPredictions(now, following)


def _grouped(prompts: list[NDArray[np.int64]], size: int = 256) -> list[list[NDArray[np.int64]]]:
    """Groups small enough that their float32 probabilities are no burden beside the trace's."""
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


def _pieces(predictor: RoutingPredictor, sequences: Sequence[Ids], last_only: bool) -> list[Piece]:
    window, vocab_size = predictor.settings.window, predictor.target.vocab_size
    pieces: list[Piece] = []
    for i, sequence in enumerate(sequences):
        ids = np.asarray(sequence, dtype=np.int64)
        if not len(ids):
            raise HrmError(f"predictor: sequence {i} is empty; there is no token to predict the experts of")
        if not 0 <= ids.min() <= ids.max() < vocab_size:
            raise HrmError(f"predictor: sequence {i} holds a token id outside 0 .. {vocab_size - 1}; wrong tokenizer?")
        length = len(ids)
        spans = [Span(max(0, length - window), length - 1, length)] if last_only else window_spans(length, window)
        pieces += [(ids, span) for span in spans]
    return pieces


@torch.inference_mode()
def _predict_batch(predictor: RoutingPredictor, pieces: Sequence[Piece]) -> NDArray[np.float32]:
    """[2, T, L, E]: of the tokens, and of those behind them."""
    tokens, wanted = pad_pieces(pieces, predictor.device)
    features = predictor.features(tokens)[wanted]  # [T, H + P]
    both = torch.stack((predictor.logits(features), predictor.following_logits(features)))
    probabilities: NDArray[np.float32] = both.sigmoid().float().cpu().numpy()
    return probabilities


def pad_pieces(pieces: Sequence[Piece], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids [B, S] padded with 0, which of them are to be predicted [B, S]) on the device."""
    length = max(span.end - span.begin for _, span in pieces)
    tokens = np.zeros((len(pieces), length), np.int64)
    wanted = np.zeros((len(pieces), length), np.bool_)
    for row, (ids, span) in enumerate(pieces):
        tokens[row, : span.end - span.begin] = ids[span.begin : span.end]
        wanted[row, span.first - span.begin : span.end - span.begin] = True
    return torch.from_numpy(tokens).to(device), torch.from_numpy(wanted).to(device)

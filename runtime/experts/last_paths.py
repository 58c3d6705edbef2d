"""Predicted paths of sequences' latest tokens on a GPU, whose launches a graph makes: what is predicted before a pass
delays it.

B sequences, S their length, padded; L MoE layers, E experts.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.errors import HrmError
from hrm.predict.path_predictions import PathPredictions
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_inference import BATCH_TOKENS, Ids, predict_paths
from runtime.graphs import CallGraphs, Calls

Ints = NDArray[np.int64]
LENGTHS = 32  # sequences are padded to multiples, so that a graph lasts as many tokens


@dataclass
class _Batch:
    """tokens [B, S], places [B] of the latest ones; probabilities [2, B, L, E] of them and of those behind."""

    tokens: Tensor
    places: Tensor
    found: Tensor | None = None


@dataclass
class LastPaths:
    """As `predict_paths` of last tokens. calls: makes those on the GPU; None: every launch is made anew."""

    predictor: RoutingPredictor
    calls: Calls | None
    stream: torch.cuda.Stream | None = None  # of its own: other lanes' work need not be through
    _batch: _Batch | None = field(default=None)

    def __call__(self, sequences: Sequence[Ids]) -> PathPredictions:
        """[B, L, E] each. Raises HrmError as `predict_paths`."""
        window, vocabulary = self.predictor.settings.window, self.predictor.target.vocab_size
        lengths = [min(len(sequence), window) for sequence in sequences]
        padded = min(window, -(-max(lengths, default=0) // LENGTHS) * LENGTHS)
        if self.calls is None or min(lengths, default=0) == 0 or len(lengths) * padded > BATCH_TOKENS:
            return predict_paths(self.predictor, sequences, last_only=True)
        tokens = np.zeros((len(lengths), padded), np.int64)
        for row, sequence, length in zip(tokens, sequences, lengths, strict=True):
            row[:length] = sequence[-length:]
        if not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise HrmError(f"predictor: a token id is outside 0 .. {vocabulary - 1}; wrong tokenizer?")
        with torch.inference_mode(), torch.cuda.stream(self.stream) if self.stream else nullcontext():
            return self._predict(tokens, np.array(lengths, np.int64) - 1, self.calls)

    def _predict(self, tokens: Ints, places: Ints, calls: Calls) -> PathPredictions:
        """tokens [B, S], places [B]."""
        batch = self._batch
        if batch is None or batch.tokens.shape != tokens.shape:
            device = self.predictor.device
            self._batch = batch = _Batch(
                torch.empty(tokens.shape, dtype=torch.int64, device=device),
                torch.empty(places.shape, dtype=torch.int64, device=device),
            )
            self.predictor.eval()
            calls.forget(lambda key: True)
        batch.tokens.copy_(torch.from_numpy(tokens))
        batch.places.copy_(torch.from_numpy(places))
        calls.run(tokens.shape, lambda: self._compute(batch))
        assert batch.found is not None
        now, following = batch.found.cpu().numpy()
        return PathPredictions(now, following)

    def _compute(self, batch: _Batch) -> None:
        predictor = self.predictor
        rows = torch.arange(len(batch.places), device=batch.places.device)
        features = predictor.features(batch.tokens)[rows, batch.places]  # [B, H + P]
        found = torch.stack((predictor.logits(features), predictor.following_logits(features))).sigmoid().float()
        if batch.found is None:  # the first call is not recorded
            batch.found = torch.empty_like(found)
        batch.found.copy_(found)


def last_paths(predictor: RoutingPredictor) -> LastPaths:
    """Where the predictor lies on a GPU, by graphs on a stream of its own."""
    if predictor.device.type != "cuda":
        return LastPaths(predictor, None)
    return LastPaths(predictor, CallGraphs(), torch.cuda.Stream(predictor.device))  # type: ignore[no-untyped-call]

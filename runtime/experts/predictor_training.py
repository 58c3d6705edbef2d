"""Trains a routing-path predictor on a recorded trace."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.errors import HrmError
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_baselines import layer_frequencies
from runtime.experts.predictor_batches import TrainingRows, training_batches
from runtime.experts.predictor_data import split_prompts
from runtime.experts.predictor_epoch import rate, train_epoch, validate
from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget, TrainingOptions, check_target
from runtime.experts.token_profiles import log_odds, token_profiles

Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Epoch:
    """Mean binary cross-entropy per token, layer and expert; recall of the top_k most probable, validation prompts."""

    train_loss: float
    validation_loss: float
    validation_recall: float


@dataclass(frozen=True)
class Training:
    """A predictor with the weights of its best epoch (counted from 0), on the CPU."""

    predictor: RoutingPredictor
    epochs: tuple[Epoch, ...]
    best: int


def train_predictor(
    trace: RoutingTrace,
    target: PredictorTarget,
    settings: PredictorSettings,
    options: TrainingOptions,
    device: torch.device,
    update: Update | None = None,
    embeddings: Tensor | None = None,
) -> Training:
    """AdamW, warm-up and cosine decay; stops early on prompts held out of the trace. `update(done, total)` in epochs.

    embeddings [V, H]: where the predictor's begin (`model_embeddings`); None: at random. Its weights are numbers of
    fp16 in the end, so that its file is half as large.

    The same seed gives the same weights on the same machine and device (CUDA kernels may add in another order).

    Raises:
        WorkloadError: a trace of another model, without token ids, or of fewer than two prompts.
        HrmError: the loss is no longer finite.
    """
    check_target(trace, target)
    train, validation = split_prompts(trace, options.validation_share, options.seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        predictor = RoutingPredictor(target, settings, options.dropout)
        if embeddings is not None:
            predictor.embedding.weight.data.copy_(embeddings)
        rows = _begin_at_counts(predictor, train, options.seed)
        return _train(predictor.to(device), TrainingRows(train, rows), TrainingRows(validation, None), options, update)


def _begin_at_counts(predictor: RoutingPredictor, train: RoutingTrace, seed: int) -> NDArray[np.float32] | None:
    """Begins at a lookup by token, whose profiles of rows are returned; for token_rank 0 at the layers' frequencies."""
    target, rank = predictor.target, predictor.settings.token_rank
    with torch.no_grad():
        predictor.heads.weight.mul_(0.1)
        predictor.heads.bias.copy_(torch.from_numpy(log_odds(layer_frequencies(train)).ravel()))
        if not rank:
            return None
        profiles = token_profiles(train, target.vocab_size, rank, seed)
        basis = torch.from_numpy(profiles.basis)  # [L E, rank]
        width = min(rank, predictor.settings.hidden_size)
        predictor.profiles.copy_(torch.from_numpy(profiles.table))
        predictor.profile_heads[:rank] = basis.T
        predictor.heads.weight[:, :width] += 0.1 * basis[:, :width]
    return profiles.rows


def _train(
    predictor: RoutingPredictor,
    train: TrainingRows,
    validation: TrainingRows,
    options: TrainingOptions,
    update: Update | None,
) -> Training:
    rng = np.random.default_rng(options.seed)
    steps = options.epochs * sum(1 for _ in training_batches(train, predictor, options.batch_tokens, None))
    optimiser = torch.optim.AdamW(
        predictor.parameters(), options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    epochs: list[Epoch] = []
    best, weights = 0, copy.deepcopy(predictor.state_dict())
    for done in range(options.epochs):
        batches = training_batches(train, predictor, options.batch_tokens, rng)
        loss = train_epoch(predictor, batches, options, optimiser, schedule)
        epochs.append(Epoch(loss, *validate(predictor, validation, options)))
        if not all(math.isfinite(x) for x in (loss, epochs[-1].validation_loss)):
            raise HrmError(f"predictor training: the loss is not finite in epoch {done}; lower the learning rate")
        if epochs[-1].validation_loss <= epochs[best].validation_loss:
            best, weights = done, copy.deepcopy(predictor.state_dict())
        if update is not None:
            update(done + 1, options.epochs)
        if done - best >= options.patience:
            break
    predictor.load_state_dict(weights)
    return Training(predictor.cpu().half().float().eval(), tuple(epochs), best)

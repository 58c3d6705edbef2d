"""One stage of a routing-path predictor's training: some weights, some experts to guess, epochs as long as it gains."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hrm.errors import HrmError
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_batches import TrainingRows, training_batches
from runtime.experts.predictor_epoch import Guess, rate, train_epoch, validate
from runtime.experts.predictor_settings import TrainingOptions


@dataclass(frozen=True)
class Epoch:
    """Mean binary cross-entropy per token, layer and expert; recall of the top_k most probable, validation prompts."""

    train_loss: float
    validation_loss: float
    validation_recall: float


@dataclass(frozen=True)
class Stage:
    """Its epochs, and which of them had the lowest validation loss (counted from 0)."""

    epochs: tuple[Epoch, ...]
    best: int

    @property
    def best_epoch(self) -> Epoch:
        """The one whose weights count."""
        return self.epochs[self.best]


def run_stage(
    predictor: RoutingPredictor,
    guess: Guess,
    weights: Iterable[nn.Parameter],
    data: tuple[TrainingRows, TrainingRows],
    options: TrainingOptions,
    epochs: int,
    update: Callable[[], None],
) -> Stage:
    """AdamW, warm-up and cosine decay; the predictor has the weights of the best epoch afterwards. data: to train on,
    and to stop by. update: after every epoch.

    Raises:
        HrmError: the loss is no longer finite.
    """
    train, validation = data
    rng = np.random.default_rng(options.seed)
    steps = epochs * sum(1 for _ in training_batches(train, predictor, options.batch_tokens, None))
    optimiser = torch.optim.AdamW(weights, options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps))
    found: list[Epoch] = []
    best, kept = 0, copy.deepcopy(predictor.state_dict())
    for done in range(epochs):
        batches = training_batches(train, predictor, options.batch_tokens, rng)
        loss = train_epoch(predictor, guess, batches, options, optimiser, schedule)
        found.append(Epoch(loss, *validate(predictor, guess, validation, options)))
        if not all(math.isfinite(x) for x in (loss, found[-1].validation_loss)):
            raise HrmError(f"predictor training: the loss is not finite in epoch {done}; lower the learning rate")
        if found[-1].validation_loss <= found[best].validation_loss:
            best, kept = done, copy.deepcopy(predictor.state_dict())
        update()
        if done - best >= options.patience:
            break
    predictor.load_state_dict(kept)
    return Stage(tuple(found), best)

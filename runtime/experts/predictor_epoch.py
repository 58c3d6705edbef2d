"""One epoch of a routing-path predictor's training: learning rate, steps, validation, loss."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_batches import TrainingBatch, TrainingRows, training_batches
from runtime.experts.predictor_settings import TrainingOptions

Guess = Callable[[RoutingPredictor, TrainingBatch], tuple[Tensor, Tensor]]
"""What is trained: logits [T, L, E] of some rows of a batch, and the experts to be guessed [T, L, k]."""


def own_experts(predictor: RoutingPredictor, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Of the wanted rows."""
    return predictor.logits(predictor.features(batch.tokens, batch.profiles)[batch.wanted]), batch.experts


def following_experts(predictor: RoutingPredictor, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Of the rows behind the wanted ones, from features that are taken as they are: trained for both, the network lost
    a point of recall of the rows' own experts.
    """
    training = predictor.training
    predictor.eval()
    with torch.no_grad():
        features = predictor.features(batch.tokens, batch.profiles)[batch.wanted][batch.followed]
    predictor.train(training)
    return predictor.following_logits(features), batch.following


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: 3 % of the steps warm up, then a cosine down to a twentieth."""
    warm_up = max(1, steps * 3 // 100)
    return min((step + 1) / warm_up, 0.525 + 0.475 * math.cos(math.pi * min(step / steps, 1.0)))


def train_epoch(
    predictor: RoutingPredictor,
    guess: Guess,
    batches: Iterator[TrainingBatch],
    options: TrainingOptions,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Mean loss over the batches, with a step for each."""
    predictor.train()
    total = torch.zeros((), device=predictor.device)
    rows = 0
    for batch in batches:
        logits, experts = guess(predictor, batch)
        if not len(experts):
            continue
        loss = _cross_entropy(logits, experts, options.pos_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()
        schedule.step()
        total += loss.detach() * len(experts)
        rows += len(experts)
    return float(total) / max(1, rows)


@torch.inference_mode()
def validate(
    predictor: RoutingPredictor, guess: Guess, data: TrainingRows, options: TrainingOptions
) -> tuple[float, float]:
    """(loss, recall at top_k) over all rows."""
    predictor.eval()
    loss, hits, rows = 0.0, 0.0, 0
    for batch in training_batches(data, predictor, options.batch_tokens, None):
        logits, experts = guess(predictor, batch)
        if not len(experts):
            continue
        chosen = logits.topk(experts.shape[-1], dim=-1).indices  # [T, L, k]
        hits += (chosen[..., None] == experts[..., None, :]).any(-1).float().mean().item() * len(experts)
        loss += _cross_entropy(logits, experts, options.pos_weight).item() * len(experts)
        rows += len(experts)
    return loss / max(1, rows), hits / max(1, rows)


def _cross_entropy(logits: Tensor, experts: Tensor, pos_weight: float) -> Tensor:
    """Binary, against the chosen experts: logits [T, L, E], experts [T, L, k]."""
    chosen = torch.zeros_like(logits).scatter_(-1, experts, 1.0)
    return functional.binary_cross_entropy_with_logits(logits, chosen, pos_weight=logits.new_tensor(pos_weight))

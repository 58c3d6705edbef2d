"""One epoch of a routing-path predictor's training: learning rate, steps, validation, loss."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_batches import TrainingBatch, TrainingRows, training_batches
from runtime.experts.predictor_settings import TrainingOptions


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: 3 % of the steps warm up, then a cosine down to a twentieth."""
    warm_up = max(1, steps * 3 // 100)
    return min((step + 1) / warm_up, 0.525 + 0.475 * math.cos(math.pi * min(step / steps, 1.0)))


def train_epoch(
    predictor: RoutingPredictor,
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
        loss, _ = _loss(predictor, batch, options.pos_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += loss.detach() * len(batch.experts)
        rows += len(batch.experts)
    return float(total) / rows


@torch.inference_mode()
def validate(predictor: RoutingPredictor, data: TrainingRows, options: TrainingOptions) -> tuple[float, float]:
    """(loss, recall at top_k) over all rows."""
    predictor.eval()
    loss, hits, rows = 0.0, 0.0, 0
    for batch in training_batches(data, predictor, options.batch_tokens, None):
        found, logits = _loss(predictor, batch, options.pos_weight)
        chosen = logits.topk(batch.experts.shape[-1], dim=-1).indices  # [T, L, k]
        hits += (chosen[..., None] == batch.experts[..., None, :]).any(-1).float().mean().item() * len(batch.experts)
        loss += found.item() * len(batch.experts)
        rows += len(batch.experts)
    return loss / rows, hits / rows


def _loss(predictor: RoutingPredictor, batch: TrainingBatch, pos_weight: float) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy against the chosen experts, and the logits [T, L, E]."""
    logits = predictor.logits(predictor.features(batch.tokens, batch.profiles)[batch.wanted])
    chosen = torch.zeros_like(logits).scatter_(-1, batch.experts, 1.0)
    weight = logits.new_tensor(pos_weight)
    return functional.binary_cross_entropy_with_logits(logits, chosen, pos_weight=weight), logits

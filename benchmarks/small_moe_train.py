"""Trains the small model on prepared token ids, for a given time or number of steps."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_moe_corpus import Corpus
from small_moe_evaluate import autocast, evaluate, to_device
from small_moe_model import balance_loss, forward, token_loss
from torch import Tensor
from transformers import MixtralForCausalLM

from hrm.errors import HrmError


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """minutes or steps ends it, whichever is given; learning rate and its cosine follow the same clock."""

    minutes: float | None
    steps: int | None
    device: str
    batch_size: int
    seq_len: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.02  # of the training
    weight_decay: float = 0.1
    balance_coefficient: float = 0.01
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """How far training is: by the clock if it has a time limit, else by steps."""

    settings: TrainSettings
    began: float = field(default_factory=time.perf_counter)
    step: int = 0

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.perf_counter() - self.began

    @property
    def done(self) -> float:
        """Share of the training that is over."""
        if self.settings.minutes is not None:
            return self.seconds / (60 * self.settings.minutes)
        assert self.settings.steps is not None
        return self.step / self.settings.steps


def windows(tokens: NDArray[np.uint16], settings: TrainSettings) -> Iterator[NDArray[np.int64]]:
    """Batches [B, S + 1] from random places, without end; the seed decides all of them."""
    if len(tokens) <= settings.seq_len:
        raise HrmError(f"training text: {len(tokens)} tokens, fewer than one window of {settings.seq_len + 1}")
    random = np.random.default_rng(settings.seed)
    offsets = np.arange(settings.seq_len + 1)
    while True:
        starts = random.integers(0, len(tokens) - settings.seq_len, settings.batch_size)
        yield tokens[starts[:, None] + offsets].astype(np.int64)


def train(
    model: MixtralForCausalLM,
    corpus: Corpus,
    held_out: Corpus,
    settings: TrainSettings,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains in place; returns the loss curve, the last evaluation and the speed.

    bf16 autocast on a GPU, fp32 on a CPU. With a time limit the number of steps depends on the machine, and so does the
    result; with a number of steps only the order of floating-point sums does.

    Raises:
        HrmError: too little text, or a loss that is not finite.
    """
    model.to(settings.device).train()
    optimizer = _optimizer(model, settings)
    progress, curve, next_report = Progress(settings), [], 0.0
    for batch in windows(corpus.tokens, settings):
        if progress.done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, progress.done)
        loss, balance = _step(model, optimizer, to_device(batch, settings.device), settings)
        progress.step += 1
        if progress.done >= next_report:
            next_report += 0.05
            curve.append(_report(progress, float(loss), float(balance), say))
    seconds = progress.seconds
    speed = {"steps": progress.step, "seconds": seconds}
    speed["tokens_per_s"] = progress.step * settings.batch_size * settings.seq_len / seconds
    return {"curve": curve, "speed": speed, "held_out": evaluate(model, held_out, settings.device, settings.seq_len)}


def learning_rate(settings: TrainSettings, done: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if done < settings.warmup:
        return settings.learning_rate * max(done, 0.01 * settings.warmup) / settings.warmup
    along = min(1.0, (done - settings.warmup) / (1 - settings.warmup))
    return settings.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * along)) / 2)


def _optimizer(model: MixtralForCausalLM, settings: TrainSettings) -> torch.optim.AdamW:
    """No decay for norms."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def _step(
    model: MixtralForCausalLM, optimizer: torch.optim.Optimizer, tokens: Tensor, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    with autocast(settings.device):
        logits, router_logits = forward(model, tokens[:, :-1])
        loss = token_loss(logits, tokens[:, 1:])
        balance = balance_loss(router_logits, model.config.num_experts_per_tok)
    (loss + settings.balance_coefficient * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), balance.detach()


def _report(progress: Progress, loss: float, balance: float, say: Callable[[str], None]) -> dict[str, float]:
    if not math.isfinite(loss):
        raise HrmError(f"training: loss is {loss} at step {progress.step}; lower --learning-rate")
    tokens = progress.step * progress.settings.batch_size * progress.settings.seq_len
    speed = tokens / progress.seconds
    figures = f"loss {loss:.3f}  balance {balance:.3f}  {speed:,.0f} tokens/s"
    say(f"step {progress.step:6,}  {tokens / 1e6:7.1f} M tokens  {figures}")
    return {"step": progress.step, "tokens": tokens, "loss": loss, "balance": balance}

"""Choosing tokens from logits. B rows, V vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM_BITS = 24


@dataclass(frozen=True)
class Draw:
    """How each row chooses, on the device: temperature, top_p [B] float64 (0 is greedy), seed and step [B] int64."""

    temperature: Tensor
    top_p: Tensor
    seed: Tensor
    step: Tensor

    def rows(self, start: int, stop: int) -> "Draw":
        """Of some rows."""
        return Draw(*(t[start:stop] for t in (self.temperature, self.top_p, self.seed, self.step)))


def choose(logits: Tensor, draw: Draw | None) -> Tensor:
    """logits [B, V] -> tokens [B] int64: the likeliest, or drawn from the tempered distribution.

    A draw depends on the row's seed and step alone, so it repeats whatever shares the batch.
    """
    greedy: Tensor = logits.argmax(dim=-1)
    if draw is None:
        return greedy
    sampled = _sampled(logits, draw)
    return torch.where(draw.temperature > 0, sampled, greedy)


def _sampled(logits: Tensor, draw: Draw) -> Tensor:
    tempered = logits / draw.temperature.clamp_min(1e-6).to(logits.dtype)[:, None]
    ordered, order = tempered.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)  # [B, V]
    before = ordered.cumsum(dim=-1) - ordered  # probability of all likelier tokens
    dropped = (before > 0) & (before >= draw.top_p.to(ordered.dtype)[:, None])  # never the likeliest
    kept = ordered.masked_fill(dropped, 0.0)
    target = _uniform(draw.seed, draw.step)[:, None] * kept.sum(dim=-1, keepdim=True)  # [B, 1]
    place = (kept.cumsum(dim=-1) <= target).sum(dim=-1, keepdim=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last))[:, 0]


def _uniform(seed: Tensor, step: Tensor) -> Tensor:
    """One number in [0, 1) per row: splitmix64's finaliser over seed and step, in wrapping int64 arithmetic."""
    x = seed * -7046029254386353131 + (step + 1) * -4658895280553007687
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ _logical_shift(x, shift)) * factor
    x = x ^ _logical_shift(x, 31)
    return _logical_shift(x, 64 - UNIFORM_BITS).to(torch.float32) / (1 << UNIFORM_BITS)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)

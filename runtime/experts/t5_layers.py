"""Layers of T5 (arXiv 1910.10683): RMSNorm before each part, no biases, unscaled attention, relative positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.experts.predictor_settings import PredictorSettings


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance 0 .. length - 1 to an earlier token: T5's unidirectional scheme, [length].

    Half of the buckets are exact distances, the others grow with the logarithm up to `max_distance`.
    """
    exact = num_buckets // 2
    distance = torch.arange(length)
    ratio = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance; -inf towards later tokens, which makes attention causal."""

    buckets: Tensor

    def __init__(self, settings: PredictorSettings) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(settings.num_buckets, settings.num_heads))
        nn.init.normal_(self.table, std=settings.hidden_size**-0.5)
        buckets = position_buckets(settings.window, settings.num_buckets, settings.max_distance)
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, length: int) -> Tensor:
        """-> [1, heads, S, S] for S = length <= window."""
        place = torch.arange(length, device=self.table.device)
        distance = place[:, None] - place  # [S, S]
        bias = self.table[self.buckets[distance.clamp(min=0)]].permute(2, 0, 1)  # [heads, S, S]
        return bias.masked_fill(distance < 0, -math.inf)[None]


class _Attention(nn.Module):
    def __init__(self, settings: PredictorSettings) -> None:
        super().__init__()
        self.num_heads, hidden = settings.num_heads, settings.hidden_size
        inner = settings.num_heads * settings.head_dim
        self.query = _linear(hidden, inner, (hidden * settings.head_dim) ** -0.5)
        self.key, self.value = _linear(hidden, inner, hidden**-0.5), _linear(hidden, inner, hidden**-0.5)
        self.output = _linear(inner, hidden, inner**-0.5)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """x, source [B, S, H], bias [1, heads, S, S] -> [B, S, H]."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, S, head_dim]
            for part in (self.query(x), self.key(source), self.value(source))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class T5Layer(nn.Module):
    """Self attention, cross attention in a decoder, FFN (ReLU)."""

    def __init__(self, settings: PredictorSettings, cross: bool, dropout: float) -> None:
        super().__init__()
        hidden, ffn, self.dropout = settings.hidden_size, settings.ffn_size, dropout
        self.self_norm, self.ffn_norm = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.self_attention = _Attention(settings)
        self.cross_norm = nn.RMSNorm(hidden, eps=1e-6) if cross else None
        self.cross_attention = _Attention(settings) if cross else None
        self.up, self.down = _linear(hidden, ffn, hidden**-0.5), _linear(ffn, hidden, ffn**-0.5)

    def forward(self, x: Tensor, source: Tensor | None, self_bias: Tensor, cross_bias: Tensor | None) -> Tensor:
        """x, source [B, S, H] -> [B, S, H]."""
        normed = self.self_norm(x)
        x = x + self._drop(self.self_attention(normed, normed, self_bias))
        if self.cross_attention is not None and self.cross_norm is not None:
            x = x + self._drop(self.cross_attention(self.cross_norm(x), source, cross_bias))
        inner = self._drop(functional.relu(self.up(self.ffn_norm(x))))  # [B, S, ffn_size]
        return x + self._drop(self.down(inner))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer

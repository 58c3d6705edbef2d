"""What the families share: computations, in the order and the dtypes of transformers, and the weights outside layers.

T tokens, H hidden_size, N query heads, K key-value heads, D head_dim, E experts, k top_k, I intermediate_size,
V vocabulary.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from runtime.models.config import ModelConfig
from runtime.models.family import Shapes, Weights


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> [..., H]; the mean square is taken in fp32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@lru_cache(maxsize=16)
def _inverse_frequencies(theta: float, head_dim: int, device: torch.device) -> Tensor:
    """[D / 2] fp32; computed on the CPU, so that every device rotates by the same angles."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / (theta**exponents)).to(device)


def rotary(config: ModelConfig, positions: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions [T] -> cos, sin [T, D] of the rotary embedding; angles in fp32."""
    frequencies = _inverse_frequencies(config.rope_theta, config.head_dim, torch.device(device))
    angles = positions.to(device).float()[:, None] * frequencies  # [T, D / 2]
    angles = torch.cat((angles, angles), dim=-1)  # [T, D]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads [T, N + K, D]; cos, sin [T, D]."""
    first, second = heads.chunk(2, dim=-1)  # [T, N + K, D / 2] each
    turned = torch.cat((-second, first), dim=-1)
    return heads * cos[:, None] + turned * sin[:, None]


def project_qkv(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, H] -> queries [T, N D], keys and values [T, K D]."""
    q = linear(x, weights["q"], weights.get("q_bias"))
    k = linear(x, weights["k"], weights.get("k_bias"))
    v = linear(x, weights["v"], weights.get("v_bias"))
    return q, k, v


def join_heads(config: ModelConfig, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q [T, N D], k and v [T, K D]; cos, sin [T, D] -> [T, N + 2 K, D]: queries and keys rotated, then values."""
    rotated = config.num_attention_heads + config.num_key_value_heads  # N + K
    shape = (q.shape[0], rotated + config.num_key_value_heads, config.head_dim)
    heads = torch.cat((q, k, v), dim=-1).view(shape)  # [T, N + 2 K, D]
    heads[:, :rotated] = _rotate(heads[:, :rotated], cos, sin)
    return heads


def add_attention(weights: Weights, hidden: Tensor, attention: Tensor) -> Tensor:
    """hidden [T, H], attention [T, N D] -> [T, H]: output projection and residual."""
    return hidden + linear(attention, weights["o"], weights.get("o_bias"))


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [T, H]; gate, up [I, H]; down [H, I] -> [T, H]."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def route(x: Tensor, router: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """x [T, H], router [E, H] -> experts [T, k] int64 and their weights [T, k] fp32; `normalise`: they sum to 1."""
    probabilities = linear(x, router).float().softmax(dim=-1)  # [T, E]
    weights, experts = probabilities.topk(top_k, dim=-1)
    return experts, weights / weights.sum(dim=-1, keepdim=True) if normalise else weights


def lm_head(config: ModelConfig, final_norm: Tensor, head: Tensor, hidden: Tensor) -> Tensor:
    """final_norm [H], head [V, H], hidden [T, H] -> logits [T, V], fp32."""
    return linear(rms_norm(hidden, final_norm, config.rms_norm_eps), head).float()


def global_shapes(config: ModelConfig) -> Shapes:
    """Shapes of the weights outside the layers; a tied lm_head is the embedding itself."""
    table = (config.vocab_size, config.hidden_size)
    return {"embedding": table, "final_norm": (config.hidden_size,), "lm_head": table}


def global_names(config: ModelConfig) -> dict[str, str]:
    """Local name -> checkpoint name of the weights outside the layers."""
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    return {"embedding": embedding, "final_norm": "model.norm.weight", "lm_head": head}

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
    if x.is_cuda:  # one kernel; rounds once where transformers rounds twice
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)
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


def project_qkv(weights: Weights, x: Tensor) -> Tensor:
    """x [T, H] -> [T, (N + 2 K) D]: queries, keys, values; one matmul where the three weights lie side by side."""
    if "qkv" in weights and ("q_bias" not in weights or "qkv_bias" in weights):
        return linear(x, weights["qkv"], weights.get("qkv_bias"))
    return torch.cat([linear(x, weights[name], weights.get(f"{name}_bias")) for name in ("q", "k", "v")], dim=-1)


def split_qkv(config: ModelConfig, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (N + 2 K) D] -> views of queries [T, N D], keys and values [T, K D]."""
    q, k, v = qkv.split([config.q_width, config.kv_width, config.kv_width], dim=-1)  # type: ignore[no-untyped-call]
    return q, k, v


def rotate_heads(config: ModelConfig, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """qkv [T, (N + 2 K) D]; cos, sin [T, D] -> [T, N + 2 K, D], the same memory: queries and keys rotated in place."""
    heads = torch.unflatten(qkv, -1, (-1, config.head_dim))  # [T, N + 2 K, D]
    rotated = heads[:, : config.num_attention_heads + config.num_key_value_heads]
    first, second = rotated.chunk(2, dim=-1)  # [T, N + K, D / 2] each
    turned = torch.cat((-second, first), dim=-1)
    rotated.mul_(cos[:, None]).addcmul_(turned, sin[:, None])
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

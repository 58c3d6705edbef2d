"""Prefill and decode steps of a transformers model with a KV cache on the GPU, timed."""

import time
from collections.abc import Callable
from typing import Any

import torch
from peer_model import PeerModel
from torch import Tensor
from transformers import DynamicCache


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the device is done, and what `work` returns."""
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def forward(model: PeerModel, tokens: Tensor, cache: DynamicCache) -> Tensor:
    """Tokens [B, S] behind those in the cache; the next ones, [B, 1]."""
    out = model.module(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    following: Tensor = out.logits[:, -1].argmax(dim=-1, keepdim=True)
    return following


def prefill(model: PeerModel, prompts: Tensor, split: int | None) -> tuple[Tensor, DynamicCache]:
    """Prompts [B, S] in parts of `split` sequences: next tokens [B, 1], and one cache for all."""
    parts, tokens = [], []
    for part in prompts.split(split or len(prompts)):
        parts.append(DynamicCache(config=model.config))
        tokens.append(forward(model, part, parts[-1]))
    return torch.cat(tokens), parts[0] if len(parts) == 1 else join(model, parts)


def join(model: PeerModel, parts: list[DynamicCache]) -> DynamicCache:
    """Caches of several batches as one; layer by layer, so that only one lies twice on the GPU."""
    whole = DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        mine: list[Any] = [part.layers[layer] for part in parts]
        whole.update(torch.cat([m.keys for m in mine]), torch.cat([m.values for m in mine]), layer)
        for m in mine:
            m.keys = m.values = None
    return whole


def random_cache(model: PeerModel, batch: int, prompt: int) -> DynamicCache:
    """A cache of random keys and values, for decode steps without prefill."""
    c, cache = model.config, DynamicCache(config=model.config)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    shape = (batch, c.num_key_value_heads, prompt, head_dim)
    for layer in range(c.num_hidden_layers):
        keys, values = (torch.randn(shape, dtype=c.dtype, device=model.device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache

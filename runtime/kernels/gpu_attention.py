"""Attention on the GPU: causal over prompts, and decode over blocks of the KV cache.

B sequences, T tokens, N query heads, K key-value heads, D head_dim, G = N / K query heads per key-value head, C tokens
of context rounded up to blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PADDED_ELEMENTS = 1 << 24  # of keys gathered at a time: bounds the memory of decode attention

Masks = dict[tuple[int, int, int], Tensor]  # by the rows of sequences and the tokens they are padded to


def decode_attention(
    qkv: Tensor,
    blocks: Tensor,
    table: Tensor,
    lengths: Tensor,
    num_heads: int,
    scale: float,
    counts: Sequence[int] | None = None,
    masks: Masks | None = None,
    stored: bool = False,
) -> Tensor:
    """qkv [B, N + 2 K, D] of the current tokens; blocks [blocks, 2, K, block, D]; table [B, most] int64 rows of blocks;
    lengths [B] int64, the current token included -> [B, N D].

    stored: the current token's K, V are in `blocks`; they need not be. counts: blocks of each sequence, where the host
    knows them. masks: kept from layer to layer, of the same table and lengths. Sequences go in groups of bounded
    memory; each is padded to the longest of its group, so neighbours should be of similar length.
    """
    kv_heads, block, dim = blocks.shape[2], blocks.shape[3], blocks.shape[4]
    batch, most = table.shape
    widths = [most] * batch if counts is None else counts
    masks, parts = {} if masks is None else masks, []
    for rows, width in padded_groups(widths, block * kv_heads * dim):
        key = rows.start, rows.stop, width * block
        if key not in masks:
            masks[key] = mask_of(lengths[rows], width * block, qkv.dtype)
        given = lengths[rows] if not stored else None
        parts.append(_padded(qkv[rows], blocks, table[rows, :width], masks[key], num_heads, scale, given))
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else qkv.new_empty((0, num_heads * dim))


def mask_of(lengths: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, most] to be added to scores: 0 for the first `lengths` tokens of each sequence, -inf behind them."""
    unseen = torch.arange(most, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(unseen.shape, dtype=dtype, device=lengths.device).masked_fill_(unseen, -torch.inf)
    return mask[:, None, None]


def padded_groups(widths: Sequence[int], block_elements: int) -> Iterator[tuple[slice, int]]:
    """Neighbours that attend at a time, padded to the widest of them, with that width in blocks; at least one."""
    most, start, widest = PADDED_ELEMENTS // block_elements, 0, 0
    for i, width in enumerate(widths):
        wider = max(widest, width)
        if i > start and (i + 1 - start) * wider > most:
            yield slice(start, i), widest
            start, wider = i, width
        widest = wider
    if widths:
        yield slice(start, len(widths)), widest


def _padded(
    qkv: Tensor, blocks: Tensor, table: Tensor, mask: Tensor, num_heads: int, scale: float, lengths: Tensor | None
) -> Tensor:
    """lengths: where the current token's K, V are not in `blocks`."""
    kv_heads, block, dim = blocks.shape[2], blocks.shape[3], blocks.shape[4]
    batch, most = table.shape
    gathered = blocks[table]  # [B, most, 2, K, block, D]
    k, v = gathered.permute(2, 0, 3, 1, 4, 5).reshape(2, batch, kv_heads, most * block, dim)  # [B, K, C, D]
    if lengths is not None:
        row = torch.arange(batch, device=qkv.device)
        k[row, :, lengths - 1] = qkv[:, num_heads : num_heads + kv_heads]
        v[row, :, lengths - 1] = qkv[:, num_heads + kv_heads :]
    q = qkv[:, :num_heads].reshape(batch, kv_heads, -1, dim)  # [B, K, G, D]
    mask = mask.expand(batch, kv_heads, q.shape[2], -1)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).reshape(batch, -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [T, N, D] of a prompt's last T tokens, k and v [S, K, D] of all up to there, S >= T -> [T, N D]."""
    tokens, total = q.shape[0], k.shape[0]
    if attends_ragged(q.device, q.dtype):
        return _flash(q, k, v, _ends(tokens, q.device), _ends(total, q.device), tokens, total, scale).flatten(1)
    mask = None
    if tokens < total:
        mask = torch.ones(tokens, total, dtype=torch.bool, device=q.device).tril(total - tokens)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, tokens, D]
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and tokens > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1).reshape(tokens, -1)


def attends_ragged(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `ragged_causal_attention` takes tensors there and of that kind."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def ragged_causal_attention(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, scale: float) -> Tensor:
    """Prompts one behind the other, each attending to itself. q [T, N, D], k and v [T, K, D], borders [B + 1] int32:
    rows at which prompts begin, and T -> [T, N, D].
    """
    return _flash(q, k, v, borders, borders, longest, longest, scale)


def _ends(tokens: int, device: torch.device) -> Tensor:
    """[0, tokens], made on the device: a copy would stand behind the weights."""
    return torch.arange(0, tokens + 1, tokens, dtype=torch.int32, device=device)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, q_borders: Tensor, k_borders: Tensor, q_longest: int, k_longest: int, scale: float
) -> Tensor:
    """Causal, the last query with the last key; [T, N, D]."""
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, q_borders, k_borders, q_longest, k_longest, 0.0, True, False, scale=scale
    )[0]
    return out


@dataclass(frozen=True)
class PromptGroup:
    """Whole prompts of similar length in a chunk, as indices on the device.

    rows: [B, longest] rows of the chunk, a prompt's first row repeated after its end; padded: [tokens] flat indices of
    the real ones among them; target: [tokens] their rows.
    """

    rows: Tensor
    padded: Tensor
    target: Tensor


def grouped_causal_attention(q: Tensor, k: Tensor, v: Tensor, group: PromptGroup, scale: float, out: Tensor) -> None:
    """q [T, N, D], k and v [T, K, D] of a chunk; writes the group's rows of out [T, N D]."""
    batch, longest = group.rows.shape
    q4, k4, v4 = (x[group.rows].transpose(1, 2) for x in (q, k, v))  # [B, heads, longest, D]
    attended = scaled_dot_product_attention(
        q4, k4, v4, is_causal=longest > 1, scale=scale, enable_gqa=q4.shape[1] != k4.shape[1]
    )
    flat = attended.transpose(1, 2).reshape(batch * longest, -1)  # [B longest, N D]
    out[group.target] = flat[group.padded]

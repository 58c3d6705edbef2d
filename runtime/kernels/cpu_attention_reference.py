"""Decode attention over a paged KV cache through PyTorch's SDPA: gathers the blocks of some sequences at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

GATHERED_BYTES = 32 * 2**20  # K and V copied out of the cache at a time


def sdpa_decode_attention(
    qkv: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor, scale: float, threads: int
) -> None:
    """As `decode_attention`, whose checks have been made. Sets torch's thread count while it runs."""
    N = out.shape[1]
    block_bytes = kv[0].numel() * kv.element_size()
    write_current(qkv, kv, block_table, lengths)
    with _torch_threads(threads):
        left = lengths.argsort(descending=True)  # [B]; neighbours of like length pad each other little
        while len(left):
            blocks = -(-int(lengths[left[0]]) // kv.shape[3])
            some, left = left.tensor_split([max(1, GATHERED_BYTES // (blocks * block_bytes))])
            out[some] = attend(qkv[some, :N], kv, block_table[some, :blocks], lengths[some], scale)


def write_current(qkv: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor) -> None:
    """Puts the current token's K and V into the cache, at position lengths - 1."""
    block, K = kv.shape[3], kv.shape[2]
    last = lengths.long() - 1  # [B]
    page = block_table.gather(1, (last // block)[:, None])[:, 0].long()  # [B]
    new = qkv[:, -2 * K :].reshape(len(qkv), 2, K, -1)  # [B, 2, K, D]
    kv[page, :, :, last % block] = new


def attend(queries: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """queries [B, N, D] over the gathered cache: [B, N, D]. A group's query heads are SDPA's query length."""
    B, N, D = queries.shape
    K, block = kv.shape[2], kv.shape[3]
    tokens = block_table.shape[1] * block
    valid = torch.arange(tokens) < lengths[:, None]  # [B, T]
    pages = block_table.where(valid[:, ::block], 0).long()  # [B, blocks]
    keys, values = kv[pages].permute(2, 0, 3, 1, 4, 5).reshape(2, B, K, tokens, D)
    b, t = valid.logical_not().nonzero(as_tuple=True)
    keys[b, :, t] = values[b, :, t] = 0  # memory never written may hold NaN, which a mask lets through
    grouped = queries.reshape(B, K, N // K, D)
    return scaled_dot_product_attention(grouped, keys, values, valid[:, None, None], scale=scale).reshape(B, N, D)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

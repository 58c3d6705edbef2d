"""Decode attention on the CPU over a paged KV cache: a small compiled kernel, or PyTorch's SDPA where none builds."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hrm.errors import UnknownNameError
from runtime.kernels.compile import load_library
from runtime.kernels.cpu_attention_reference import sdpa_decode_attention
from runtime.kernels.kernel_dtypes import DTYPES

Backend = Literal["compiled", "sdpa", "auto"]
SOURCE = Path(__file__).with_name("cpu_attention.cpp")
OUT_OF_RANGE = 2  # what the kernel returns for lengths and blocks that `check_blocks` refuses
FORCED = "HRM_CPU_ATTENTION"


class _Problem(ctypes.Structure):
    """`struct Problem` of cpu_attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "kv", "block_table", "lengths", "out")),
        *((name, ctypes.c_int64) for name in ("sequences", "query_heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_int64) for name in ("block_tokens", "table_width", "cache_blocks")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("threads", "dtype")),
    )


def decode_attention(
    qkv: Tensor,
    kv: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    out: Tensor,
    scale: float,
    threads: int,
    backend: Backend = "auto",
) -> None:
    """Writes the current token's K and V into the cache at lengths - 1, then attends over lengths tokens into `out`.

    qkv: [B, N + 2 K, D], N query heads, K new keys, K new values, rotary done; kv: [blocks, 2, K, block, D];
    block_table: [B, width] int32, entries past a sequence's length are not read; lengths: [B] int32, the current
    token included; out: [B, N, D]. fp32, bf16 or fp16, contiguous, on the CPU; sums are fp32. The GIL is released.

    Raises ValueError for tensors that do not fit together, and where "compiled" is asked for and cannot be had.
    """
    check_arguments(qkv, kv, block_table, lengths, out, threads)
    if qkv.shape[0] == 0:
        return
    if (attention_backend() if backend == "auto" else backend) == "sdpa":
        check_blocks(kv, block_table, lengths)
        sdpa_decode_attention(qkv, kv, block_table, lengths, out, scale, threads)
    else:
        _compiled_decode_attention(qkv, kv, block_table, lengths, out, scale, threads)


def attention_backend() -> Literal["compiled", "sdpa"]:
    """What "auto" uses: the compiled kernel where it builds, unless HRM_CPU_ATTENTION=sdpa.

    Raises UnknownNameError for another value of the variable.
    """
    forced = os.environ.get(FORCED, "auto")
    if forced not in ("auto", "sdpa"):
        raise UnknownNameError(f"{FORCED} is {forced!r}: set it to sdpa for PyTorch's attention, to auto or not at all")
    return "sdpa" if forced == "sdpa" or _library() is None else "compiled"


def build_failure() -> str:
    """Why there is no compiled kernel; empty where there is one."""
    return _load()[1]


def check_arguments(qkv: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor, threads: int) -> None:
    """Raises ValueError unless shapes, dtypes and layouts are what `decode_attention` states."""
    if qkv.dim() != 3 or kv.dim() != 5 or kv.shape[1] != 2:
        raise ValueError(
            f"qkv {list(qkv.shape)}, kv {list(kv.shape)}: expected [B, N + 2 K, D], [blocks, 2, K, block, D]"
        )
    B, heads, D = qkv.shape
    K = kv.shape[2]
    N = heads - 2 * K
    if K < 1 or N < 1 or N % K or D < 1 or kv.shape[3] < 1 or kv.shape[4] != D:
        raise ValueError(f"qkv {list(qkv.shape)}, kv {list(kv.shape)}: {N} query heads, {K} KV heads, head_dim {D}")
    _check_tensor("qkv", qkv, (B, heads, D), qkv.dtype)
    _check_tensor("kv", kv, tuple(kv.shape), qkv.dtype)
    _check_tensor("block_table", block_table, (B, block_table.shape[-1]), torch.int32)
    _check_tensor("lengths", lengths, (B,), torch.int32)
    _check_tensor("out", out, (B, N, D), qkv.dtype)
    if qkv.dtype not in DTYPES:
        raise ValueError(f"qkv is {qkv.dtype}: CPU attention takes float32, bfloat16 or float16")
    if threads < 1:
        raise ValueError(f"threads is {threads}: at least one is needed")


def check_blocks(kv: Tensor, block_table: Tensor, lengths: Tensor) -> None:
    """Raises ValueError where a length exceeds the table or an entry in use is not a block of the cache."""
    blocks, block = kv.shape[0], kv.shape[3]
    shortest, longest = (int(length) for length in lengths.aminmax())
    if shortest < 1 or longest > block_table.shape[1] * block:
        raise ValueError(
            f"lengths from {shortest} to {longest}: a table of {block_table.shape[1]} blocks of {block} tokens"
        )
    used = torch.arange(block_table.shape[1], dtype=torch.int32) * block < lengths[:, None]
    wrong = used & ((block_table < 0) | (block_table >= blocks))
    if bool(wrong.any()):
        b, i = wrong.nonzero()[0].tolist()
        raise ValueError(f"block_table[{b}, {i}] is {int(block_table[b, i])}: the cache has {blocks} blocks")


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = (tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.is_contiguous())
    if found != (shape, dtype, "cpu", True):
        layout = "contiguous" if found[3] else "not contiguous"
        raise ValueError(
            f"{name} is {list(found[0])} {dtype_name(found[1])} on {found[2]}, {layout}: "
            f"expected {list(shape)} {dtype_name(dtype)} on cpu, contiguous"
        )


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _compiled_decode_attention(
    qkv: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor, scale: float, threads: int
) -> None:
    library = _library()
    if library is None:
        raise ValueError(f"there is no compiled CPU attention: {build_failure()}")
    pointers = (tensor.data_ptr() for tensor in (qkv, kv, block_table, lengths, out))
    sizes = (out.shape[0], out.shape[1], kv.shape[2], kv.shape[4], kv.shape[3], block_table.shape[1], kv.shape[0])
    problem = _Problem(*pointers, *sizes, scale, threads, DTYPES[qkv.dtype])
    status = library.decode_attention(ctypes.byref(problem))
    if status == OUT_OF_RANGE:
        check_blocks(kv, block_table, lengths)
    if status != 0:
        raise MemoryError(f"no memory for the scores of {threads} threads at length {int(lengths.max())}")


def _library() -> ctypes.CDLL | None:
    return _load()[0]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load_library(SOURCE)

"""What a token's experts gave it, added up on the CPU: a small compiled kernel, or PyTorch's operations.

T tokens, k top_k, H hidden_size, S slabs, R rows of a slab's outputs.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from runtime.kernels.compile import load_library
from runtime.kernels.kernel_dtypes import DTYPES

SOURCE = Path(__file__).with_name("cpu_combine.cpp")
TORCH_BYTES = 16 << 20  # of fp32 sums at a time


class _Problem(ctypes.Structure):
    """`struct Problem` of cpu_combine.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parts", "rows", "weights", "out")),
        *((name, ctypes.c_int64) for name in ("slabs", "part_rows", "tokens", "top_k", "hidden")),
        *((name, ctypes.c_int32) for name in ("threads", "part_dtype", "out_dtype")),
    )


def combine_experts(
    parts: Tensor, rows: Tensor, weights: Tensor, out: Tensor, threads: int, compiled: bool = True
) -> None:
    """out[t] = sum of weights[t, c] * parts[s, rows[t, c]] over slabs s and choices c; sums are fp32.

    parts [S, R, H], rows [T, k] int64, weights [T, k] fp32, out [T, H]; contiguous, on the CPU.
    compiled: the kernel where one can be built.

    Raises ValueError for tensors that do not fit together.
    """
    _check(parts, rows, weights, out, threads)
    library = _library() if compiled else None
    if library is None:
        _by_torch(parts, rows, weights, out)
        return
    sizes = (*parts.shape[:2], *rows.shape, parts.shape[2])
    addresses = (tensor.data_ptr() for tensor in (parts, rows, weights, out))
    problem = _Problem(*addresses, *sizes, threads, DTYPES[parts.dtype], DTYPES[out.dtype])
    library.combine_experts(ctypes.byref(problem))


def _by_torch(parts: Tensor, rows: Tensor, weights: Tensor, out: Tensor) -> None:
    step = max(1, TORCH_BYTES // (4 * parts.shape[0] * rows.shape[1] * parts.shape[2]))
    for start in range(0, len(out), step):
        taken = parts[:, rows[start : start + step]].float()  # [S, t, k, H]
        out[start : start + step] = torch.einsum("stkh,tk->th", taken, weights[start : start + step])


def _check(parts: Tensor, rows: Tensor, weights: Tensor, out: Tensor, threads: int) -> None:
    if parts.ndim != 3 or rows.ndim != 2 or weights.shape != rows.shape or out.shape != (len(rows), parts.shape[2]):
        shapes = f"parts {list(parts.shape)}, rows {list(rows.shape)}, weights {list(weights.shape)}"
        raise ValueError(f"{shapes}, out {list(out.shape)}: expected [S, R, H], [T, k], [T, k], [T, H]")
    if (
        parts.dtype not in DTYPES
        or out.dtype not in DTYPES
        or (rows.dtype, weights.dtype) != (torch.int64, torch.float)
    ):
        dtypes = ", ".join(str(tensor.dtype) for tensor in (parts, rows, weights, out))
        raise ValueError(f"{dtypes}: expected fp32, bf16 or fp16 parts and out, int64 rows, fp32 weights")
    if not all(tensor.is_contiguous() for tensor in (parts, rows, weights, out)) or threads < 1:
        raise ValueError(f"{threads} threads, at least 1; and every tensor contiguous")
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < parts.shape[1]:
        raise ValueError(f"rows from {rows.min()} to {rows.max()}: there are {parts.shape[1]}")


def _library() -> ctypes.CDLL | None:
    return _load()[0]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load_library(SOURCE)

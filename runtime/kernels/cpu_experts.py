"""Experts with few tokens on the CPU: a small compiled kernel that reads each weight once, or PyTorch's matmuls.

T tokens, k top_k, H hidden_size, I intermediate_size, E' listed experts, R rows: their (token, choice) pairs.
"""

import ctypes
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.kernels.compile import load_library
from runtime.kernels.expert_mlp import expert_mlp
from runtime.kernels.kernel_dtypes import DTYPES

Backend = Literal["compiled", "torch", "auto"]
Ints = NDArray[np.int64]
SOURCE = Path(__file__).with_name("cpu_experts.cpp")


class _Problem(ctypes.Structure):
    """`struct Problem` of cpu_experts.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "pairs", "starts", "weights", "out")),
        *((name, ctypes.c_int64) for name in ("experts", "hidden", "intermediate", "top_k")),
        *((name, ctypes.c_int32) for name in ("threads", "dtype")),
    )


def few_token_experts(
    x: Tensor,
    pairs: Ints | Tensor,
    starts: Ints | Tensor,
    weights: Ints | Tensor,
    intermediate: int,
    out: Tensor,
    threads: int,
    backend: Backend = "auto",
) -> None:
    """Writes (silu(x G^T) * (x U^T)) D^T of each listed expert to its pairs' rows of `out`; other rows stay.

    x: [T, H] fp32, bf16 or fp16; pairs: [R] int64, t k + c, expert after expert; starts: [E' + 1] int64, where each
    expert's pairs begin, and R; weights: [E', 2] int64, addresses of gate_up [2 I, H] (gate rows, then up rows) and
    down [H, I] in x's dtype; out: [T k, H] fp32. All contiguous, on the CPU. Sums are fp32, the result of silu times up
    is rounded to x's dtype. The GIL is released. The addresses are trusted. PyTorch's matmuls keep their own threads.

    Raises ValueError for arguments that do not fit together, and where "compiled" is asked for and cannot be had.
    """
    pairs, starts, weights = (
        _as_ints(name, v) for name, v in (("pairs", pairs), ("starts", starts), ("weights", weights))
    )
    _check_tensors(x, out, intermediate, threads)
    _check_lists(pairs, starts, weights, len(out))
    if len(pairs) == 0:
        return
    if (experts_backend() if backend == "auto" else backend) == "torch":
        _torch_experts(x, pairs, starts, weights, intermediate, out)
    else:
        _compiled_experts(x, pairs, starts, weights, intermediate, out, threads)


def experts_backend() -> Literal["compiled", "torch"]:
    """What "auto" uses: the compiled kernel where it builds."""
    return "torch" if _load()[0] is None else "compiled"


def build_failure() -> str:
    """Why there is no compiled kernel; empty where there is one."""
    return _load()[1]


@cache
def listed_experts_kernel() -> Any:
    """`listed_experts` of cpu_experts.cpp, to be called through ctypes; None where it does not build."""
    library = _load()[0]
    if library is None:
        return None
    library.listed_experts.restype = ctypes.c_int64
    return library.listed_experts


def addresses(gate_up: Tensor, down: Tensor) -> tuple[int, int]:
    """One row of `weights`. Raises ValueError unless gate_up [2 I, H] and down [H, I] are contiguous CPU tensors."""
    fits = gate_up.dim() == 2 and gate_up.shape[0] == 2 * down.shape[-1] and down.shape[0] == gate_up.shape[1]
    placed = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in (gate_up, down))
    if not (fits and placed and gate_up.dtype == down.dtype):
        raise ValueError(
            f"gate_up {list(gate_up.shape)} {gate_up.dtype}, down {list(down.shape)} {down.dtype}: "
            "expected [2 I, H] and [H, I] of one dtype, contiguous, on cpu"
        )
    return gate_up.data_ptr(), down.data_ptr()


def _as_ints(name: str, values: Ints | Tensor) -> Ints:
    if isinstance(values, Tensor) and values.device.type != "cpu":
        raise ValueError(f"{name} is on {values.device}: expected it on cpu")
    found = np.asarray(values)
    if found.dtype != np.int64:
        raise ValueError(f"{name} is {found.dtype}: expected int64")
    return np.ascontiguousarray(found)


def _check_tensors(x: Tensor, out: Tensor, intermediate: int, threads: int) -> None:
    for name, tensor in (("x", x), ("out", out)):
        if tensor.dim() != 2 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"{name} is {list(tensor.shape)} on {tensor.device}: expected a contiguous matrix on cpu")
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}: experts on the CPU take float32, bfloat16 or float16")
    if (
        not (len(x) and len(out) and len(out) % len(x) == 0 and out.shape[1] == x.shape[1])
        or out.dtype != torch.float32
    ):
        raise ValueError(f"x {list(x.shape)}, out {list(out.shape)} {out.dtype}: expected [T, H], [T k, H] float32")
    if x.shape[1] < 1 or intermediate < 1 or threads < 1:
        raise ValueError(f"H {x.shape[1]}, intermediate {intermediate}, threads {threads}: each must be at least 1")


def _check_lists(pairs: Ints, starts: Ints, weights: Ints, num_pairs: int) -> None:
    if pairs.ndim != 1 or starts.ndim != 1 or weights.shape != (len(starts) - 1, 2):
        shapes = f"pairs {list(pairs.shape)}, starts {list(starts.shape)}, weights {list(weights.shape)}"
        raise ValueError(f"{shapes}: expected [R], [E + 1], [E, 2]")
    if starts[0] != 0 or starts[-1] != len(pairs) or (np.diff(starts) < 0).any():
        raise ValueError(f"starts must rise from 0 to the {len(pairs)} pairs: it is {starts.tolist()}")
    if len(pairs) and not (pairs.min() >= 0 and pairs.max() < num_pairs):
        raise ValueError(f"pairs from {pairs.min()} to {pairs.max()}: out has {num_pairs} rows")


def _torch_experts(x: Tensor, pairs: Ints, starts: Ints, weights: Ints, intermediate: int, out: Tensor) -> None:
    H, top_k = x.shape[1], len(out) // len(x)
    for (start, stop), (gate_up, down) in zip(pairwise(starts.tolist()), weights.tolist(), strict=True):
        if stop > start:
            rows = torch.from_numpy(pairs[start:stop])
            matrices = (_matrix(gate_up, 2 * intermediate, H, x.dtype), _matrix(down, H, intermediate, x.dtype))
            out[rows] = expert_mlp(x[rows // top_k], *matrices).float()


def _matrix(address: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The memory at an address as [rows, columns], without a copy."""
    memory = (ctypes.c_char * (rows * columns * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(rows, columns)


def _compiled_experts(
    x: Tensor, pairs: Ints, starts: Ints, weights: Ints, intermediate: int, out: Tensor, threads: int
) -> None:
    library, failure = _load()
    if library is None:
        raise ValueError(f"there are no compiled CPU experts: {failure}")
    lists = (values.ctypes.data for values in (pairs, starts, weights))
    sizes = (len(weights), x.shape[1], intermediate, len(out) // len(x))
    problem = _Problem(x.data_ptr(), *lists, out.data_ptr(), *sizes, threads, DTYPES[x.dtype])
    if library.few_token_experts(ctypes.byref(problem)) != 0:
        raise MemoryError(f"no memory for {len(pairs)} rows of {x.shape[1]} and {intermediate} numbers")


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load_library(SOURCE)

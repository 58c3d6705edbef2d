"""Dtypes that the runtime computes in, by the names of policies and profiles. PyTorch is loaded on first use only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TORCH_NAMES: Mapping[str, str] = MappingProxyType({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
DTYPES = tuple(_TORCH_NAMES)  # the first that a device computes in is its default


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's dtype of one of DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name, one of DTYPES, of a dtype that the runtime computes in."""
    return next(name for name in DTYPES if torch_dtype(name) == dtype)

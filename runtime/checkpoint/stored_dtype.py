"""Dtypes as safetensors names them, and which of them can be run."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from hrm.errors import CheckpointError
from runtime.checkpoint.header import StoredTensor

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def require_dtype(found: str, where: str) -> torch.dtype:
    """The torch dtype of a stored one.

    Raises:
        CheckpointError: not a dtype that the runtime computes in; `where` names file and tensor.
    """
    if found not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise CheckpointError(f"{where} stored as {found}, not one of {known}; use the unquantised checkpoint")
    return _DTYPES[found]


def dtype_of_most(stored: Mapping[str, StoredTensor], directory: Path) -> torch.dtype:
    """The dtype in which most elements are stored. Raises CheckpointError if it cannot be run."""
    elements: Counter[str] = Counter()
    for tensor in stored.values():
        elements[tensor.dtype] += prod(tensor.shape)
    if not elements:
        raise CheckpointError(f"{directory}: its safetensors files hold no tensors; download them again")
    return require_dtype(elements.most_common(1)[0][0], f"{directory}: most weights are")

"""Reads the header of a safetensors file: which tensors it holds, and whether all of their bytes are there.

Format: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hrm.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a header describes it; `dtype` in the format's words, such as BF16."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of `file` by name.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated or not in the safetensors format.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header, start = _parse(stream, file, size)
    except OSError as failure:
        raise CheckpointError(f"{file}: cannot be read ({failure.strerror or failure})") from None
    header.pop("__metadata__", None)
    try:
        tensors = {name: StoredTensor(file, name, e["dtype"], tuple(e["shape"])) for name, e in header.items()}
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (KeyError, TypeError, IndexError):
        raise _damaged(file, "its header is malformed") from None
    if end != size:
        raise _damaged(file, f"it is {size:,} bytes, and its header describes {end:,}")
    return tensors


def _parse(stream: BinaryIO, file: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors' bytes begin."""
    start = 8 + int.from_bytes(stream.read(8), "little")
    if size < 8 or start > min(size, _MAX_HEADER_BYTES):
        raise _damaged(file, f"it is {size:,} bytes, shorter than its header")
    try:
        header = json.loads(stream.read(start - 8))
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    return header, start


def _damaged(file: Path, wrong: str) -> CheckpointError:
    return CheckpointError(f"{file}: is truncated or damaged ({wrong}); download it again")

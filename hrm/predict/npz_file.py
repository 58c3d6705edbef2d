"""Archives of plain arrays (.npz), read and written with one-line errors."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError

# What numpy and zipfile raise for a file that is not, or no longer, an .npz archive of plain arrays.
_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError, TypeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A compressed archive that `read_arrays` reads back unchanged.

    Raises:
        WorkloadError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written ({error.strerror})") from None


def read_arrays(path: Path, advice: str) -> dict[str, NDArray[Any]]:
    """All arrays of an archive; `advice` says how to get a good one.

    Raises:
        WorkloadError: not to be read, damaged, or a single array.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {name: np.asarray(archive[name]) for name in archive.files}
    except _UNREADABLE as failure:
        reason = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
        raise WorkloadError(f"{path}: cannot be read as .npz ({reason}); {advice}") from None
    raise WorkloadError(f"{path}: holds a single array, not an .npz archive; {advice}")


def describe(array: NDArray[Any]) -> str:
    """Type and shape."""
    return f"{array.dtype} {array.shape}"

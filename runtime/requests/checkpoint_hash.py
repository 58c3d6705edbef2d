"""Tells one checkpoint from another without reading all of its weights."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from hrm.errors import RequestError

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
SAMPLE = 64 * 1024  # bytes taken from the beginning and from the end of a file of weights


def hash_checkpoint(directory: Path) -> str:
    """Of the small files, and of the name, size, first and last 64 KiB of every safetensors file.

    Raises:
        RequestError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for name in SMALL_FILES:
            if (directory / name).is_file():
                digest.update(name.encode() + b"\0" + (directory / name).read_bytes())
        for path in sorted(directory.glob("*.safetensors")):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + _ends(path))
    except OSError as failure:
        raise RequestError(f"{failure.filename or directory}: cannot be read ({failure.strerror})") from None
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(SAMPLE)
        file.seek(max(0, file.seek(0, os.SEEK_END) - SAMPLE))
        return first + file.read(SAMPLE)


def hash_synthetic(config: Mapping[str, object], seed: int) -> str:
    """Of all that random weights depend on."""
    return hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()

"""Reads the small JSON files of a checkpoint directory."""

import json
from pathlib import Path

from hrm.errors import CheckpointError
from hrm.spec.text_file import read_text


def read_json(path: Path) -> dict[str, object]:
    """The one JSON object that `path` holds.

    Raises:
        CheckpointError: the file cannot be read, or is anything else.
    """
    try:
        value = json.loads(read_text(path, CheckpointError))
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"{path}: is not valid JSON ({str(failure)[:200]}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold one JSON object, not a {type(value).__name__}; download it again")
    return value

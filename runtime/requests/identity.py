"""What a run is of: kept beside its results, so that it is only continued as the same run."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hrm.errors import RequestError
from runtime.requests.entry import Chat, Entry

FORMAT = 1  # of the file beside the results


@dataclass(frozen=True)
class RunIdentity:
    """Hashes of what a run reads, and the settings that its tokens depend on. `policy` is its fields."""

    input: str
    sampling: str
    model: str
    dtype: str
    device: str
    policy: Mapping[str, Any]

    def differences(self, other: "RunIdentity") -> tuple[str, ...]:
        """Names of the fields that differ."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


def identity_path(output: Path) -> Path:
    """Where the identity of a run lies: results.jsonl.meta beside results.jsonl."""
    return output.with_name(output.name + ".meta")


def write_identity(identity: RunIdentity, path: Path) -> None:
    """Writes the file whole or not at all.

    Raises:
        RequestError: it cannot be written.
    """
    text = json.dumps({"format": FORMAT, **asdict(identity)}, indent=2) + "\n"
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as failure:
        unfinished.unlink(missing_ok=True)
        raise RequestError(f"{path}: cannot be written ({failure.strerror or failure})") from None


def read_identity(path: Path) -> RunIdentity | None:
    """The identity in a file; None where there is none.

    Raises:
        RequestError: a file that is not one of these.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise RequestError(f"{path}: cannot be read ({failure.strerror or failure})") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT or not _is_complete(data):
        raise RequestError(f"{path}: was not written by this version of hrm run; start again with --overwrite")
    return RunIdentity(**data)


def _is_complete(data: dict[str, Any]) -> bool:
    return set(data) == {f.name for f in fields(RunIdentity)} and isinstance(data["policy"], dict)


def hash_prompts(entries: Iterable[Entry]) -> str:
    """Of ids, forms and prompts."""
    return _hash([entry.request_id, entry.form, _plain_prompt(entry)] for entry in entries)


def hash_sampling(entries: Iterable[Entry]) -> str:
    """Of how tokens are chosen, request by request."""
    return _hash(asdict(entry.sampling) for entry in entries)


def _plain_prompt(entry: Entry) -> object:
    return entry.prompt.messages if isinstance(entry.prompt, Chat) else entry.prompt


def _hash(rows: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()

"""Reads back what a run has written: which requests are finished, and where the last whole line ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hrm.errors import RequestError
from runtime.requests.json_fields import parse_object
from runtime.requests.result_line import result_id


@dataclass(frozen=True)
class FinishedLines:
    """Ids in a file of results, and the bytes of its whole lines; what follows them was cut short by a kill."""

    ids: frozenset[str]
    whole_bytes: int


def read_finished(path: Path) -> FinishedLines:
    """What is finished in a file of results; changes nothing.

    Raises:
        RequestError: unreadable, or a whole line that is no result, or an id written twice; names file and line.
    """
    ids, size = set[str](), 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(_whole_lines(file), 1):
                ids.add(_new_id(raw, f"{path}:{number}", ids))
                size += len(raw)
    except OSError as failure:
        raise RequestError(f"{path}: cannot be read ({failure.strerror or failure})") from None
    return FinishedLines(frozenset(ids), size)


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _new_id(raw: bytes, where: str, seen: set[str]) -> str:
    found = result_id(dict(parse_object(raw, where).values))
    if not isinstance(found, str):
        raise RequestError(f"{where}: is no result of hrm run (it has no id); start again with --overwrite")
    if found in seen:
        raise RequestError(f"{where}: id {found!r} is there twice; start again with --overwrite")
    return found

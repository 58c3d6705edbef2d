"""Reads a file of requests, one JSON object a line, batch and plain forms, all of it before anything runs."""

from pathlib import Path

from hrm.errors import RequestError
from runtime.requests.batch_line import LINE_FIELDS, read_batch_line
from runtime.requests.entry import Entry
from runtime.requests.json_fields import parse_object
from runtime.requests.plain_line import read_plain_line
from runtime.requests.request import Sampling


def read_input(path: Path, defaults: Sampling) -> tuple[Entry, ...]:
    """Every request of the file, in its order; `defaults` for what a line does not state.

    Raises:
        RequestError: names file and line: unreadable, empty, an empty line before the last, a malformed line, an id
            given twice, or batch lines for different models.
    """
    lines = read_lines(path)
    entries = tuple(_entry(raw, f"{path}:{i}", i, defaults) for i, raw in enumerate(lines, 1))
    _check_ids(entries)
    _check_models(entries)
    return entries


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file without their line feeds; empty ones at its end are left out.

    Raises:
        RequestError: unreadable, or holds nothing.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise RequestError(f"{str(path)[-200:]}: cannot be read ({reason})") from None
    lines = data.split(b"\n")  # not splitlines, which also splits at characters that JSON allows in text
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise RequestError(f'{path}: holds no requests; give one a line, such as {{"prompt": "Hello"}}')
    return lines


def _entry(raw: bytes, where: str, line: int, defaults: Sampling) -> Entry:
    if not raw.strip():
        raise RequestError(f"{where}: is empty; remove the line")
    fields = parse_object(raw, where)
    if any(name in fields.values for name in LINE_FIELDS):
        return read_batch_line(fields, defaults)
    return read_plain_line(fields, line, defaults)


def _check_ids(entries: tuple[Entry, ...]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.request_id in seen:
            raise RequestError(f"{entry.where}: id {entry.request_id!r} was given before, at {seen[entry.request_id]}")
        seen[entry.request_id] = entry.where


def _check_models(entries: tuple[Entry, ...]) -> None:
    """A run has one model; its name in the file is free, but two names cannot both be it."""
    named = [entry for entry in entries if entry.model is not None]
    for entry in named:
        if entry.model != named[0].model:
            raise RequestError(
                f"{entry.where}: model {entry.model!r}, but {named[0].where} asks for {named[0].model!r}; a run has "
                "one model: split the file"
            )

"""Reads and writes small text files at the border of the toolkit; every way of failing becomes one typed error."""

from pathlib import Path
from typing import Any

import yaml

from hrm.errors import HrmError

MAX_BYTES = 64 * 1024 * 1024


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which plain YAML silently lets the last one win."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = True) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def exists(path: Path) -> bool:
    """Whether something lies at `path`; False too for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether a plain file lies at `path`."""
    return exists(path) and path.is_file()


def read_text(path: Path, error: type[HrmError]) -> str:
    """The text of `path`.

    Raises:
        error: missing, a directory, unreadable, empty, binary, or larger than 64 MiB.
    """
    if exists(path) and not is_file(path):
        raise error(f"{path}: is a directory, a pipe or a device; name a plain file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or type(failure).__name__
        raise error(f"{str(path)[-200:]!r}: cannot be read ({reason})") from None
    if len(raw) > MAX_BYTES:
        raise error(f"{path}: is {len(raw):,} bytes; expected a small text file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise error(f"{path}: is not text (not valid UTF-8)") from None
    if "\x00" in text:
        raise error(f"{path}: is not text (holds NUL bytes)")
    if not text.strip():
        raise error(f"{path}: is empty")
    return text


def write_text(path: Path, text: str, error: type[HrmError]) -> None:
    """Writes `text` to `path`.

    Raises:
        error: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as failure:
        reason = failure.strerror or failure
        raise error(f"{path}: cannot be written ({reason}); choose another place") from None


def read_yaml_mapping(text: str, where: str, error: type[HrmError]) -> dict[str, Any]:
    """The top-level mapping of a YAML text, keys as text, every key given once.

    Raises:
        error: malformed YAML, or anything but a mapping at the top.
    """
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as failure:
        detail = " ".join(str(failure).split())
        raise error(f"{where}: malformed YAML ({detail})") from None
    if not isinstance(data, dict):
        raise error(f"{where}: must hold `field: value` lines, not {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets the last of two equal keys win silently; here it is a fault."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"field {key!r} is given twice")
        seen[key] = value
    return seen

"""Every number of a hardware profile as rows for a table."""

from collections.abc import Iterator

from pydantic import BaseModel

from hrm.spec.hardware import HardwareProfile, Number


def profile_numbers(profile: HardwareProfile) -> list[tuple[str, str, str, str]]:
    """(field, value as written, kind, source title and date) of every number that the profile states."""
    parts: list[tuple[str, object]] = [("gpu", profile.gpu), ("cpu", profile.cpu), ("disk", profile.disk)]
    parts += [("links", profile.links), ("efficiency", profile.efficiency)]
    found = [pair for field, part in parts for pair in _numbers(field, part)]
    return [
        (field, number.text, number.kind, f"{profile.sources[number.source].title} ({number.date})")
        for field, number in found
    ]


def _numbers(field: str, part: object) -> Iterator[tuple[str, Number]]:
    if isinstance(part, Number):
        yield field, part
    elif isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield from _numbers(f"{field}.{name}", getattr(part, name))
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from _numbers(f"{field}.{name}", value)
    elif isinstance(part, tuple):
        for i, value in enumerate(part):
            yield from _numbers(f"{field}[{i}]", value)

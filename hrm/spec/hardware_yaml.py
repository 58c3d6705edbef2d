"""Loads hardware profiles: from a path, or by name from those that ship with the package."""

from importlib import resources
from pathlib import Path

from hrm.errors import ProfileError, UnknownNameError
from hrm.spec.hardware_profile import HardwareProfile
from hrm.spec.hardware_reader import Reader
from hrm.spec.hardware_sections import read_parts
from hrm.spec.suggest import unknown_name
from hrm.spec.text_file import read_text, read_yaml_mapping

_REQUIRED = ("name", "title", "device_count", "sources", "gpu", "cpu", "links")
_OPTIONAL = ("disk", "efficiency")


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that ship with the package, sorted."""
    files = resources.files("hardware_profiles").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def load_profile(name_or_path: str) -> HardwareProfile:
    """The profile in the file `name_or_path`, else the shipped one of that name, with or without ".yaml".

    Raises:
        UnknownNameError: neither a file nor a shipped name; an unknown field, source, dtype or link.
        ProfileError: an unreadable or malformed file, a missing field, or a machine that contradicts itself.
        UnitError: a quantity without a unit or with one of the wrong kind.
    """
    path, stem = Path(name_or_path), name_or_path.removesuffix(".yaml")
    try:
        if path.is_file():
            return parse_profile(read_text(path, ProfileError), str(path))
        if stem in shipped_profiles():
            text = (resources.files("hardware_profiles") / f"{stem}.yaml").read_text(encoding="utf-8")
            return parse_profile(text, f"{stem}.yaml")
        if path.exists() and name_or_path:
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise ProfileError(f"{name_or_path}: is {kind}; name a profile file")
    except OSError as failure:
        raise ProfileError(f"{name_or_path[:80]!r}: cannot be read ({failure.strerror})") from None
    if len(path.parts) > 1:
        raise ProfileError(f"{name_or_path}: no such file")
    raise unknown_name("hardware profile (and no such file)", name_or_path, shipped_profiles())


def parse_profile(text: str, file: str) -> HardwareProfile:
    """The profile in a YAML text; `file` names it in errors, which are those of load_profile."""
    try:
        raw = read_yaml_mapping(text, file, ProfileError)
    except (TypeError, AttributeError, LookupError) as failure:
        # PyYAML's constructors of tagged scalars (!!bool maybe, !!timestamp x) raise these.
        raise ProfileError(f"{file}: malformed YAML ({failure})") from None
    fields = Reader(file, {}).mapping(raw, "profile", _REQUIRED, _OPTIONAL)
    table = Reader(file, {}).free_mapping(fields["sources"], "sources")
    sources = {key: Reader(file, {}).source(entry, f"sources.{key}") for key, entry in table.items()}
    reader = Reader(file, sources)
    parts = read_parts(reader, fields)
    try:
        return HardwareProfile(sources=sources, **parts)
    except (ProfileError, UnknownNameError) as error:
        raise type(error)(f"{file}: {error}") from None

"""Turns a calibration into the text of a hardware profile."""

from pathlib import Path
from typing import Any

import yaml

from hrm.errors import ProfileError
from hrm.spec.hardware_yaml import parse_profile
from hrm.spec.text_file import write_text
from hrm.spec.units import format_bytes
from runtime.calibration.efficiency_section import efficiency_section
from runtime.calibration.level_sections import cpu_section, gpu_section
from runtime.calibration.link_sections import disk_section, link_sections
from runtime.calibration.numbers import SOURCE
from runtime.calibration.results import Calibration

_WIDTH = 10_000  # one number per line


def profile_text(calibration: Calibration, name: str) -> str:
    """The YAML of a profile called `name` whose every number is measured."""
    fields: dict[str, Any] = {
        "name": name,
        "title": _title(calibration),
        "device_count": 1,
        "sources": {SOURCE: {"title": _source(calibration), "date": calibration.machine.date}},
        "gpu": gpu_section(calibration),
        "cpu": cpu_section(calibration),
        "disk": disk_section(calibration),
        "links": link_sections(calibration),
        "efficiency": efficiency_section(calibration),
    }
    present = {key: value for key, value in fields.items() if value is not None}
    body = yaml.safe_dump(present, sort_keys=False, default_flow_style=None, width=_WIDTH, allow_unicode=True)
    return _header(calibration) + body


def _header(calibration: Calibration) -> str:
    lines = (
        "Written by `hrm calibrate`. Every roof is the highest rate that was measured, not a datasheet's peak.",
        "Compute by tokens: where a larger size ran slower than a smaller one, the smaller one has the lower rate too.",
        f"GPU experts: {calibration.expert_method}. CPU attention: {calibration.attention_method} kernel.",
        "Page-locked host memory." if calibration.machine.has_gpu else "No GPU was used: its numbers are this CPU's.",
    )
    busy = f"The machine was busy with other work (load average {calibration.machine.load:.1f}): measure again."
    return "".join(f"# {line}\n" for line in (*lines, *([busy] if calibration.machine.is_busy else [])))


def write_profile(calibration: Calibration, path: Path) -> None:
    """Writes the profile, named after the file, once it has been found to load.

    Raises:
        ProfileError: the file cannot be written, or the measurements contradict each other.
    """
    text = profile_text(calibration, path.stem)
    parse_profile(text, str(path))
    write_text(path, text, ProfileError)


def _title(calibration: Calibration) -> str:
    machine = calibration.machine
    cpu = f"{machine.threads} threads of {machine.cpu_name}, {format_bytes(machine.cpu_usable)}"
    held = f" held to {format_bytes(machine.gpu_usable)} (emulated)" if machine.gpu_limit else ""
    if not machine.has_gpu:
        return f"CPU in place of a GPU{held}; {cpu}"
    return f"1x {machine.gpu_name}{held}, {cpu}"


def _source(calibration: Calibration) -> str:
    quick = ", at most 512 wide (--quick)" if calibration.quick else ""
    return f"hrm calibrate: {calibration.machine.software}, {calibration.dtype}, {calibration.model} shapes{quick}"

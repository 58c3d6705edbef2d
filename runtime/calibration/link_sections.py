"""The sections `links` and `disk` of a profile."""

from typing import Any

from hrm.spec.hardware_checks import pcie_limit
from runtime.calibration.numbers import (
    by_size,
    bytes_text,
    entry,
    rate_text,
    seconds_text,
    spread_entry,
)
from runtime.calibration.results import Calibration, LinkResult, Spread, Timing
from runtime.calibration.steps import fastest_copy, streaming


def link_sections(calibration: Calibration) -> dict[str, Any]:
    """htod and dtoh, and those of the disk where one was measured."""
    technology, limit = _technology(calibration)
    both = f"both ways at once {rate_text(calibration.both_ways.median)}"
    directions = {"htod": calibration.htod, "dtoh": calibration.dtoh}
    links = {name: _link(link, technology, f"{limit}{both}") for name, link in directions.items()}
    disk = calibration.disk
    if disk is None:
        return links
    return {
        **links,
        "disk_read": _disk_link(disk.read, disk.read_latency, disk.method),
        "disk_write": _disk_link(disk.write, disk.write_latency, "written and synchronised"),
    }


def disk_section(calibration: Calibration) -> dict[str, Any] | None:
    """Sizes of the disk, None where none was measured."""
    disk = calibration.disk
    if disk is None:
        return None
    return {
        "memory_capacity": entry(bytes_text(disk.total_bytes)),
        "memory_usable": entry(bytes_text(disk.free_bytes), "free when measured"),
    }


def _technology(calibration: Calibration) -> tuple[str, str]:
    """What the link is, and words on its limit; a reported link slower than what was measured is not believed."""
    link = calibration.machine.link
    if not calibration.machine.has_gpu:
        return "copies within CPU memory", ""
    limit = pcie_limit(link) if link else None
    fastest = max(fastest_copy(calibration.htod), fastest_copy(calibration.dtoh))
    if link is None or limit is None or fastest > limit:
        return "host link of a type that is not reported", ""
    return link, f"the link itself carries {rate_text(limit)}; "


def _link(link: LinkResult, technology: str, words: str) -> dict[str, Any]:
    _, rate = streaming(link.timings)
    return {
        "technology": technology,
        "bandwidth": spread_entry(rate, rate_text, f"highest by size: {by_size(link.timings)}; {words}"),
        "latency": spread_entry(link.latency, seconds_text, "1 KiB, copied and synchronised"),
    }


def _disk_link(timing: Timing, latency: Spread, method: str) -> dict[str, Any]:
    return {
        "technology": "disk",
        "bandwidth": spread_entry(timing.bytes_per_s, rate_text, method),
        "latency": spread_entry(latency, seconds_text, "4 KiB"),
    }

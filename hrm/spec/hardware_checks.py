"""What no real machine can be: the consistency checks of a hardware profile."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from hrm.errors import ProfileError
from hrm.spec.dtypes import DTYPE_BYTES
from hrm.spec.hardware_parts import (
    LINK_NAMES,
    OP_CLASSES,
    Disk,
    Level,
    Link,
    Number,
    OperatorEfficiency,
    PeakFlops,
    TokenStep,
)
from hrm.spec.suggest import unknown_name

if TYPE_CHECKING:
    from hrm.spec.hardware_profile import HardwareProfile

_PCIE = re.compile(r"PCIe (?P<generation>[345])\.0 x(?P<lanes>4|8|16)")
_GIGATRANSFERS = {"3": 8e9, "4": 16e9, "5": 32e9}
_ROUNDING = 1 + 1e-4  # a limit written with five digits is not above itself


def pcie_limit(technology: str) -> float | None:
    """One-way bytes/s of "PCIe 4.0 x16" and the like, None for anything that is not PCIe.

    lanes x GT/s x 128/130 (line code) / 8 (PCI Express Base Specification 3.0 to 5.0): 15.754, 31.508 and
    63.015 GB/s for x16. Packet headers are left out; they are part of the measured efficiency.
    Raises ProfileError for a PCIe link of another form.
    """
    if not technology.lower().startswith("pci"):
        return None
    match = _PCIE.fullmatch(technology)
    if match is None:
        raise ProfileError(f'technology {technology!r} is not understood; write e.g. "PCIe 3.0 x16"')
    return int(match["lanes"]) * _GIGATRANSFERS[match["generation"]] * 128 / 130 / 8


def check_profile(profile: HardwareProfile) -> None:
    """Raises ProfileError (UnknownNameError for names) with the first field that contradicts the others."""
    for field, problem in _problems(profile):
        raise ProfileError(f"{profile.name}: {field}: {problem}")


def _problems(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    if profile.device_count < 1:
        yield "device_count", f"must be 1 or more, not {profile.device_count}"
    if profile.device_count > 1 and "gpu_to_gpu" not in profile.links:
        yield "links.gpu_to_gpu", f"is needed with {profile.device_count} devices; add it"
    yield from _level("gpu", profile.gpu)
    yield from _level("cpu", profile.cpu)
    if profile.disk:
        yield from _sizes("disk", profile.disk)
    yield from _links(profile)
    yield from _efficiencies("gpu", profile.efficiency.gpu)
    yield from _efficiencies("cpu", profile.efficiency.cpu)
    for name, share in profile.efficiency.links.items():
        if name not in profile.links:
            raise unknown_name("link", name, profile.links, f"{profile.name}: efficiency.links")
        yield from _share(f"efficiency.links.{name}", share)


def _sizes(field: str, memory: Level | Disk) -> Iterator[tuple[str, str]]:
    usable, capacity = memory.memory_usable, memory.memory_capacity
    yield from _positive(f"{field}.memory_capacity", capacity)
    yield from _positive(f"{field}.memory_usable", usable)
    if usable.value > capacity.value:
        yield f"{field}.memory_usable", f"{usable.text} is above the capacity of {capacity.text}"


def _level(field: str, level: Level) -> Iterator[tuple[str, str]]:
    yield from _sizes(field, level)
    yield from _positive(f"{field}.memory_bandwidth", level.memory_bandwidth)
    for name in ("task_overhead", "graph_overhead", "gate_overhead"):
        overhead = getattr(level, name)
        if overhead:
            yield from _positive(f"{field}.{name}", overhead)
    if level.processor is None or not level.processor.peak_flops:
        yield f"{field}.processor.peak_flops", "states no peak; add at least one dtype"
        return
    if level.processor.cores is not None and level.processor.cores < 1:
        yield f"{field}.processor.cores", f"must be 1 or more, not {level.processor.cores}"
    for dtype, peak in level.processor.peak_flops.items():
        yield from _peak(f"{field}.processor.peak_flops.{dtype}", dtype, peak)


def _peak(field: str, dtype: str, peak: PeakFlops) -> Iterator[tuple[str, str]]:
    words = f"{dtype} {peak.text} {peak.accumulate} {peak.note}".lower()
    if "sparse" in words:
        yield field, "is a sparse peak; write the dense one (half of it on NVIDIA tensor cores)"
    if dtype not in DTYPE_BYTES:
        raise unknown_name("dtype", dtype, DTYPE_BYTES, field)
    yield from _positive(field, peak)


def _links(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    for name in profile.links:
        if name not in LINK_NAMES:
            raise unknown_name("link", name, LINK_NAMES, f"{profile.name}: links")
    needed = {"htod", "dtoh"} | ({"disk_read", "disk_write"} if profile.disk else set())
    for name in sorted(needed - set(profile.links)):
        yield f"links.{name}", "is missing; add it"
    for name, link in profile.links.items():
        yield from _link(f"links.{name}", link)


def _link(field: str, link: Link) -> Iterator[tuple[str, str]]:
    yield from _positive(f"{field}.bandwidth", link.bandwidth)
    yield from _positive(f"{field}.latency", link.latency)
    try:
        limit = pcie_limit(link.technology)
    except ProfileError as error:
        yield f"{field}.technology", str(error)
        return
    if limit is not None and link.bandwidth.value > limit * _ROUNDING:
        allowed = f"{link.technology} carries {limit / 1e9:.3f} GB/s one way"
        yield f"{field}.bandwidth", f"{link.bandwidth.text} is impossible: {allowed}"


def _efficiencies(level: str, table: dict[str, OperatorEfficiency]) -> Iterator[tuple[str, str]]:
    for op_class, stated in table.items():
        field = f"efficiency.{level}.{op_class}"
        if op_class not in OP_CLASSES:
            raise unknown_name("operator class", op_class, OP_CLASSES, f"efficiency.{level}")
        if stated.compute and stated.compute_by_tokens is not None:
            yield f"{field}.compute", "is given twice, also as compute_by_tokens; keep one"
        for part, share in (("compute", stated.compute), ("memory", stated.memory)):
            if share:
                yield from _share(f"{field}.{part}", share)
        if stated.compute_by_tokens is not None:
            yield from _table(f"{field}.compute_by_tokens", stated.compute_by_tokens)


def _table(field: str, steps: tuple[TokenStep, ...]) -> Iterator[tuple[str, str]]:
    if not steps or steps[0].from_tokens != 1:
        yield field, "must begin with from_tokens: 1"
    for step in steps:
        yield from _share(f"{field}[from_tokens: {step.from_tokens}]", step.efficiency)
    for before, after in pairwise(steps):
        if after.from_tokens <= before.from_tokens:
            yield field, f"from_tokens must increase ({before.from_tokens}, then {after.from_tokens})"
        if after.efficiency.value < before.efficiency.value:
            yield field, f"must not decrease ({before.efficiency.text}, then {after.efficiency.text})"


def _share(field: str, share: Number) -> Iterator[tuple[str, str]]:
    if not 0 < share.value <= 1:
        yield field, f"{share.text} is {share.value:.4g} of the peak; an efficiency lies in (0, 1]"


def _positive(field: str, number: Number) -> Iterator[tuple[str, str]]:
    if not (math.isfinite(number.value) and number.value > 0):
        yield field, f"{number.text} must be a finite number above zero"

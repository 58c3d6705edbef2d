"""Hypothetical machines: a profile with one resource made larger or smaller."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hrm.errors import ProfileError
from hrm.spec.hardware_parts import Level, Link
from hrm.spec.suggest import unknown_name

if TYPE_CHECKING:
    from hrm.spec.hardware_profile import HardwareProfile

RESOURCES = (
    "gpu_compute",
    "gpu_memory_bandwidth",
    "gpu_memory",
    "cpu_compute",
    "cpu_memory_bandwidth",
    "cpu_memory",
    "htod",
    "dtoh",
    "disk",
    "gpu_to_gpu",
)
LARGEST_FACTOR = 1e6


def scaled_profile(profile: HardwareProfile, resource: str, factor: float) -> HardwareProfile:
    """A copy of `profile` with `resource` (one of RESOURCES) `factor` times as large, efficiencies unchanged.

    Memory scales capacity and usable alike, compute all peaks, disk both directions' bandwidth (not size).
    The copy is hypothetical: it may exceed what the link's technology allows, and its text says "x factor".

    Raises:
        UnknownNameError: an unknown resource.
        ProfileError: a factor outside (0, 1e6), or a machine that lacks the resource.
    """
    if resource not in RESOURCES:
        raise unknown_name("resource", resource, RESOURCES, profile.name)
    if not 0 < factor < LARGEST_FACTOR or not math.isfinite(factor):
        raise ProfileError(f"{profile.name}: cannot scale {resource} by {factor}; the factor must lie in (0, 1e6)")
    if resource.startswith(("gpu_", "cpu_")) and resource != "gpu_to_gpu":
        level, _, part = resource.partition("_")
        return profile.model_copy(update={level: _scaled_level(profile.level(level), part, factor)})
    names = ("disk_read", "disk_write") if resource == "disk" else (resource,)
    scaled = {name: _scaled_link(profile.link(name), factor) for name in names}
    return profile.model_copy(update={"links": {**profile.links, **scaled}})


def _scaled_level(level: Level, part: str, factor: float) -> Level:
    if part == "memory_bandwidth":
        return level.model_copy(update={"memory_bandwidth": level.memory_bandwidth.scaled(factor)})
    if part == "memory":
        return level.model_copy(
            update={
                "memory_capacity": level.memory_capacity.scaled(factor),
                "memory_usable": level.memory_usable.scaled(factor),
            }
        )
    if level.processor is None:
        return level
    peaks = {dtype: peak.scaled(factor) for dtype, peak in level.processor.peak_flops.items()}
    return level.model_copy(update={"processor": level.processor.model_copy(update={"peak_flops": peaks})})


def _scaled_link(link: Link, factor: float) -> Link:
    return link.model_copy(update={"bandwidth": link.bandwidth.scaled(factor)})

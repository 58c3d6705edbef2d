"""Hardware profiles: what other modules import. The parts, the profile and its loading each have a file."""

from hrm.spec.hardware_parts import (
    LEVELS,
    LINK_NAMES,
    OP_CLASSES,
    Disk,
    Efficiency,
    Level,
    Link,
    Number,
    OperatorEfficiency,
    PeakFlops,
    Processor,
    Source,
    TokenStep,
)
from hrm.spec.hardware_profile import HardwareProfile
from hrm.spec.hardware_scaling import RESOURCES
from hrm.spec.hardware_yaml import load_profile, shipped_profiles

__all__ = [
    "LEVELS",
    "LINK_NAMES",
    "OP_CLASSES",
    "RESOURCES",
    "Disk",
    "Efficiency",
    "HardwareProfile",
    "Level",
    "Link",
    "Number",
    "OperatorEfficiency",
    "PeakFlops",
    "Processor",
    "Source",
    "TokenStep",
    "load_profile",
    "shipped_profiles",
]

"""The hierarchical roofline of any pair of memory levels of a machine."""

from hrm.errors import RooflineError
from hrm.roofline.roofs import HierarchicalRoofline, LevelRoof
from hrm.spec.hardware import HardwareProfile
from hrm.spec.suggest import unknown_name

NEAR_LEVELS = ("gpu", "cpu")
FAR_LEVELS = ("cpu", "disk", "peer_gpu")
_PATHS = {
    ("gpu", "cpu"): ("htod",),
    ("gpu", "disk"): ("disk_read", "htod"),
    ("cpu", "disk"): ("disk_read",),
    ("gpu", "peer_gpu"): ("gpu_to_gpu",),
}


def level_pair(
    profile: HardwareProfile, near: str, far: str, dtype: str, far_dtype: str | None = None, calibrated: bool = False
) -> HierarchicalRoofline:
    """Roofs of computing at `near` on data that lies at `far`; the slowest link on the way is the cross-level roof.

    A disk computes nothing: its peak is 0 and its memory bandwidth is the link's. `far_dtype` is what the far processor
    computes in where it differs. `calibrated` takes achieved link bandwidths instead of peaks.

    Raises:
        UnknownNameError: an unknown level. RooflineError: a pair that no link joins.
        ProfileError: a number that the profile does not state.
    """
    if near not in NEAR_LEVELS:
        raise unknown_name("level", near, NEAR_LEVELS)
    if far not in FAR_LEVELS:
        raise unknown_name("level", far, FAR_LEVELS)
    path = _PATHS.get((near, far))
    if path is None:
        raise RooflineError(f"{profile.name}: no link joins {far} to {near}; pairs: {', '.join(map(str, _PATHS))}")
    rate = profile.achieved_link_bandwidth if calibrated else profile.link_bandwidth
    link = min(rate(name) for name in path)
    return HierarchicalRoofline(_level(profile, near, dtype), _far(profile, far, far_dtype or dtype, link), link)


def _level(profile: HardwareProfile, level: str, dtype: str) -> LevelRoof:
    return LevelRoof(level, profile.peak_flops_per_s(level, dtype), profile.level(level).memory_bandwidth.value)


def _far(profile: HardwareProfile, far: str, dtype: str, link: float) -> LevelRoof:
    if far == "disk":
        return LevelRoof("disk", 0.0, link)
    return _level(profile, "cpu" if far == "cpu" else "gpu", dtype)

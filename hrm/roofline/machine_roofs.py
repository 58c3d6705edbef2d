"""Every roof of a machine for one operator class, datasheet and measured."""

from hrm.errors import RooflineError
from hrm.roofline.chart import Roof
from hrm.roofline.roofs import HierarchicalRoofline, LevelRoof
from hrm.spec.hardware import HardwareProfile
from hrm.spec.precision import Precision, cpu_compute_dtype

MANY_ROWS = 1e9  # rows of a matmul at which the measured compute efficiency is the roof
LINKS = {"htod": ("htod", "CPU-GPU link"), "disk_read": ("disk", "disk"), "gpu_to_gpu": ("gpu_to_gpu", "GPU-GPU link")}


def machine_roofs(profile: HardwareProfile, precision: Precision, op_class: str, devices: int = 1) -> tuple[Roof, ...]:
    """Compute and memory roofs of GPU and CPU, then the links the profile has: CPU-GPU, disk, GPU-GPU.

    Datasheet peaks, and beside them peak * efficiency of `op_class` where the profile states one (compute: at many
    rows). `devices` > 1 sums the GPUs' own roofs and their CPU links; CPU, disk and one GPU-GPU link stay as they are.

    Raises:
        ProfileError: a peak that the profile does not state. UnknownNameError: an unknown operator class.
    """
    roofs = []
    for level, dtype in (("gpu", precision.activations), ("cpu", cpu_compute_dtype(profile, precision))):
        many, name = (devices, _many(devices)) if level == "gpu" else (1, "")
        peak = profile.peak_flops_per_s(level, dtype) * many
        share = profile.compute_efficiency(level, op_class, MANY_ROWS)
        roofs.append(_roof(f"{level.upper()} {dtype}{name}", level, True, peak, share))
        peak = profile.level(level).memory_bandwidth.value * many
        share = profile.memory_efficiency(level, op_class)
        roofs.append(_roof(f"{level.upper()} memory{name}", level, False, peak, share))
    for link, (level, label) in LINKS.items():
        if link in profile.links and (link != "gpu_to_gpu" or profile.device_count > 1):
            many, name = (devices, _many(devices)) if link == "htod" else (1, "")
            peak = profile.link_bandwidth(link)
            share = profile.achieved_link_bandwidth(link) / peak
            roofs.append(_roof(label + name, level, False, peak * many, share))
    return tuple(roofs)


def _many(devices: int) -> str:
    return f" (x{devices})" if devices > 1 else ""


def _roof(label: str, level: str, is_compute: bool, peak: float, share: float) -> Roof:
    return Roof(label, level, is_compute, peak, peak * share if share < 1 else None)


def gpu_over_link(roofs: tuple[Roof, ...]) -> HierarchicalRoofline:
    """GPU and CPU joined by their link, at measured values where there are some.

    Raises:
        RooflineError: `roofs` lack a level.
    """
    values = {(r.level, r.is_compute): r.value for r in roofs}
    try:
        near, far = (LevelRoof(name, values[name, True], values[name, False]) for name in ("gpu", "cpu"))
        return HierarchicalRoofline(near, far, values["htod", False])
    except KeyError as missing:
        raise RooflineError(f"the chart has no roof for {missing.args[0][0]}; build it with machine_roofs") from None

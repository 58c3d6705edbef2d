"""A profile's memories held to less."""

from hrm.spec.hardware import HardwareProfile


def capped(profile: HardwareProfile, gpu_memory: float | None, cpu_memory: float | None = None) -> HardwareProfile:
    """The profile with no more usable memory than stated, in bytes; None leaves a memory as it is."""
    for resource, level, limit in (("gpu_memory", profile.gpu, gpu_memory), ("cpu_memory", profile.cpu, cpu_memory)):
        usable = level.memory_usable.value
        if limit is not None and limit < usable:
            profile = profile.with_scaled(resource, limit / usable)
    return profile

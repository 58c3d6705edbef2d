"""A profile's memories held to less."""

from hrm.spec.hardware import HardwareProfile

GPU_RESERVE = 256 << 20  # workspaces of matrix libraries and gaps between blocks: 170 MiB seen under 16 GiB
RESERVE_SHARE = 32  # of a smaller limit, one part of so many


def gpu_reserve(limit: float) -> float:
    """Bytes of the GPU allocator's limit that a policy must leave free."""
    return min(GPU_RESERVE, limit // RESERVE_SHARE)


def allocator_limit(usable: float) -> float:
    """The limit that leaves `usable` bytes to a policy."""
    return usable + min(GPU_RESERVE, usable / (RESERVE_SHARE - 1))


def capped(profile: HardwareProfile, gpu_memory: float | None, cpu_memory: float | None = None) -> HardwareProfile:
    """The profile with no more usable memory than stated, in bytes; None leaves a memory as it is.

    gpu_memory: what the allocator may hold, of which policies leave `gpu_reserve` free.
    """
    gpu_usable = None if gpu_memory is None else gpu_memory - gpu_reserve(gpu_memory)
    for resource, level, limit in (("gpu_memory", profile.gpu, gpu_usable), ("cpu_memory", profile.cpu, cpu_memory)):
        usable = level.memory_usable.value
        if limit is not None and limit < usable:
            profile = profile.with_scaled(resource, limit / usable)
    return profile

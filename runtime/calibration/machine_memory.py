"""How much memory a program can use here: found, or stated by the user."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from hrm.errors import HrmError
from hrm.spec.units import format_bytes
from runtime.kv_need import HEADROOM

GPU_RESERVE = 256 << 20  # workspaces of matrix libraries and gaps between blocks: 170 MiB seen under 16 GiB
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class MemorySizes:
    """Bytes."""

    gpu_capacity: int
    gpu_usable: int
    cpu_capacity: int
    cpu_usable: int


def gpu_machine_memory(device: torch.device, gpu_memory: int | None, cpu_memory: int | None) -> MemorySizes:
    """Memory of a machine with a GPU: free now, or as stated; the GPU's is then the allocator's limit.

    Raises:
        HrmError: `gpu_memory` above what is free.
    """
    torch.zeros(1, device=device)  # makes the CUDA context, whose CPU memory is then no longer counted as available
    free, gpu_total = torch.cuda.mem_get_info(device)
    if gpu_memory is not None and gpu_memory > free:
        raise HrmError(f"--gpu-memory {format_bytes(gpu_memory)}: only {format_bytes(free)} are free; state less")
    limit = free if gpu_memory is None else gpu_memory
    torch.cuda.set_per_process_memory_fraction(limit / gpu_total, device)
    total, available = cpu_memory_bytes()
    cpu_usable = available - HEADROOM if cpu_memory is None else cpu_memory
    return MemorySizes(gpu_total, limit - GPU_RESERVE, max(total, cpu_usable), cpu_usable)


def cpu_only_memory(gpu_memory: int | None, cpu_memory: int | None) -> MemorySizes:
    """CPU memory divided between the GPU that the CPU plays and the CPU: in halves, or as stated.

    Raises:
        HrmError: a part that leaves nothing for the other one.
    """
    total, available = cpu_memory_bytes()
    if gpu_memory is None and cpu_memory is None:
        gpu_memory = available // 2
    for name, part, other in (("--gpu-memory", gpu_memory, cpu_memory), ("--cpu-memory", cpu_memory, gpu_memory)):
        if part is not None and other is None and part >= available:
            raise HrmError(
                f"{name} {format_bytes(part)}: {format_bytes(available)} are available, to be divided between the CPU "
                "and the GPU it plays; state less, or both parts"
            )
    gpu = available - (cpu_memory or 0) if gpu_memory is None else gpu_memory
    cpu = available - gpu if cpu_memory is None else cpu_memory
    return MemorySizes(max(total, gpu), gpu, max(total, cpu), cpu)


def cpu_memory_bytes() -> tuple[int, int]:
    """(total, available) bytes as the operating system reports them; where it reports no more, free pages."""
    if _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        if "MemAvailable" in kib:
            return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page

"""How much memory a program can use here: found, or stated by the user."""

from dataclasses import dataclass

import torch

from hrm.errors import HrmError
from hrm.spec.units import format_bytes
from runtime.host_memory import available_bytes, reserve_bytes, total_bytes
from runtime.profile_limits import gpu_reserve


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
    total, available = total_bytes(), available_bytes()
    cpu_usable = available - reserve_bytes(available) if cpu_memory is None else cpu_memory
    return MemorySizes(gpu_total, limit - int(gpu_reserve(limit)), max(total, cpu_usable), cpu_usable)


def cpu_only_memory(gpu_memory: int | None, cpu_memory: int | None) -> MemorySizes:
    """CPU memory divided between the GPU that the CPU plays and the CPU: in halves, or as stated.

    Raises:
        HrmError: a part that leaves nothing for the other one.
    """
    total, available = total_bytes(), available_bytes()
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

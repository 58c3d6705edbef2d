"""Where a validation ran."""

from datetime import date

import torch

from hrm.spec.hardware import HardwareProfile
from runtime.calibration.machine import cpu_name
from runtime.validation.report import MachineFacts

EMULATED_BELOW = 0.9  # of the card's memory; the driver keeps less than the rest


def is_emulated(device: torch.device, gpu_memory: float | None) -> bool:
    """Whether the run is held to less memory than the GPU has; without a GPU its memory is always played."""
    if device.type != "cuda":
        return True
    total: int = torch.cuda.get_device_properties(device).total_memory
    return gpu_memory is not None and gpu_memory < EMULATED_BELOW * total


def machine_facts(profile: HardwareProfile, device: torch.device, emulated: bool) -> MachineFacts:
    """Names, versions and memory."""
    on_gpu = device.type == "cuda"
    cuda = f" with CUDA {torch.version.cuda}" if on_gpu else ""
    return MachineFacts(
        profile=profile.name,
        title=profile.title,
        device=torch.cuda.get_device_name(device) if on_gpu else f"{cpu_name()} in place of a GPU",
        software=f"PyTorch {torch.__version__}{cuda}",
        date=date.today().isoformat(),
        gpu_memory_bytes=profile.gpu.memory_usable.value,
        cpu_memory_bytes=profile.cpu.memory_usable.value,
        gpu_memory_emulated=emulated,
    )

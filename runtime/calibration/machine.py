"""What this machine says of itself: names, threads, versions, the link's generation."""

import os
import platform
import shutil
import subprocess
from datetime import date
from pathlib import Path

import torch

from hrm.errors import ProfileError
from hrm.spec.hardware_checks import pcie_limit
from runtime.calibration.machine_memory import MemorySizes, cpu_only_memory, gpu_machine_memory
from runtime.calibration.results import MachineFacts

_CPUINFO = Path("/proc/cpuinfo")


def machine_facts(device: torch.device, gpu_memory: int | None, cpu_memory: int | None) -> MachineFacts:
    """Facts, with memory in bytes limited to what is stated; a limit of the GPU's is set in PyTorch's allocator.

    Raises:
        HrmError: more memory stated than there is.
    """
    on_gpu = device.type == "cuda"
    memory = gpu_machine_memory(device, gpu_memory, cpu_memory) if on_gpu else cpu_only_memory(gpu_memory, cpu_memory)
    return _facts(device, memory, gpu_memory is not None, cpu_memory is not None)


def _facts(device: torch.device, memory: MemorySizes, gpu_limit: bool, cpu_limit: bool) -> MachineFacts:
    on_gpu = device.type == "cuda"
    cuda = f" with CUDA {torch.version.cuda}" if on_gpu else ""
    return MachineFacts(
        has_gpu=on_gpu,
        gpu_name=torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        cpu_name=cpu_name(),
        threads=torch.get_num_threads(),
        gpu_capacity=memory.gpu_capacity,
        gpu_usable=memory.gpu_usable,
        gpu_limit=gpu_limit,
        cpu_capacity=memory.cpu_capacity,
        cpu_usable=memory.cpu_usable,
        cpu_limit=cpu_limit,
        link=_pcie(device) if on_gpu else None,
        software=f"PyTorch {torch.__version__}{cuda}",
        date=date.today().isoformat(),
        load=os.getloadavg()[0],
    )


def cpu_name() -> str:
    """The processor's model name, else its architecture."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _pcie(device: torch.device) -> str | None:
    """ "PCIe 5.0 x16" where the driver's tool reports a link that profiles know, else None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = "--query-gpu=pcie.link.gen.max,pcie.link.width.max"
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        found = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits", "-i", uuid], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    generation, _, lanes = found.stdout.strip().partition(",")
    link = f"PCIe {generation.strip()}.0 x{lanes.strip()}"
    try:
        pcie_limit(link)
    except ProfileError:
        return None
    return link

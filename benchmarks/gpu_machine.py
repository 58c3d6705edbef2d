"""What a GPU benchmark ran on: machine, GPU and library versions."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from machine import this_machine

from runtime.host_memory import total_bytes

LIBRARIES = ("torch", "transformers", "accelerate")
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def describe_machine(device: str) -> dict[str, Any]:
    """Machine in words, GPU, memory in bytes, versions, and settings of the allocator."""
    on_gpu = device.startswith("cuda")
    return {
        "machine": this_machine(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "cpu_memory_bytes": total_bytes(),
        "cuda": torch.version.cuda if on_gpu else None,
        "versions": {name: _version(name) for name in LIBRARIES},
        "allocator": {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""From what the user asks for to a calibration: chooses device, dtype, shapes and sizes, then measures."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hrm.spec.model_config import load_model
from runtime.calibration.disk import check_directory
from runtime.calibration.machine import machine_facts
from runtime.calibration.measure import Progress, choose_dtype, measure
from runtime.calibration.plan import make_plan
from runtime.calibration.results import Calibration
from runtime.calibration.shapes import shapes_of
from runtime.device import choose_device
from runtime.threads import compute_threads


@dataclass(frozen=True)
class Options:
    """Memory in bytes; None leaves a choice to the machine. `disk`: a directory on the disk to measure."""

    gpu_memory: int | None = None
    cpu_memory: int | None = None
    device: str | None = None
    dtype: str | None = None
    model: str = "mixtral-8x7b"
    disk: Path | None = None
    quick: bool = False


def calibrate_machine(options: Options, progress: Progress) -> Calibration:
    """Measures this machine; `progress` is told (steps done, of how many).

    Raises:
        HrmError: an option that this machine cannot meet; says which.
    """
    shapes = shapes_of(load_model(options.model))
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    machine = machine_facts(device, options.gpu_memory, options.cpu_memory)
    plan = make_plan(shapes, dtype, machine.gpu_usable, machine.cpu_usable, options.quick)
    if options.disk is not None:
        check_directory(options.disk, plan.file_bytes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(compute_threads(beside_gpu=device.type == "cuda"))  # as the runtime does
        return measure(plan, machine, device, dtype, options.disk, progress)
    finally:
        torch.set_num_threads(threads)

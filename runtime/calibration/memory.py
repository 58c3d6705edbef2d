"""Bandwidth of the two memories: plain reads on the CPU, plain copies on the GPU."""

import torch

from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.timing import random_tensor, time_calls


def measure_cpu_read(plan: Plan) -> tuple[Timing, Timing]:
    """Reading a buffer once (a sum over fp32): with all threads, and with one."""
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    data = random_tensor((plan.memory_bytes // 4,), torch.float32, cpu)
    with_all = time_calls(data.sum, cpu, plan.effort, plan.memory_bytes, nbytes=plan.memory_bytes)
    try:
        torch.set_num_threads(1)
        with_one = time_calls(data.sum, cpu, plan.effort, plan.memory_bytes, nbytes=plan.memory_bytes)
    finally:
        torch.set_num_threads(threads)
    return with_all, with_one


def measure_copy(plan: Plan, device: torch.device) -> Timing:
    """A copy within the memory of `device`; its bytes count reads and writes."""
    size = plan.gpu_memory_bytes
    source = random_tensor((size // 4,), torch.float32, device)
    target = torch.empty_like(source)
    return time_calls(lambda: target.copy_(source), device, plan.effort, size, nbytes=2 * size)

"""How many threads work on the CPU."""

import os

SPARE_CORES = 8  # one of so many is left to the threads that feed the GPU


def compute_threads(beside_gpu: bool = True) -> int:
    """Threads for work on the CPU: beside a GPU all cores but those that feed it.

    Where the CPU plays the GPU too each of the two gets half of the cores, in a run as in the calibration: neither is
    predicted to have what the other takes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - max(1, cores // SPARE_CORES)) if beside_gpu else max(1, cores // 2)

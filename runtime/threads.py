"""How many threads work on the CPU."""

import os

SPARE_CORES = 8  # one of so many is left to the threads that feed the GPU


def compute_threads() -> int:
    """Threads for work on the CPU beside a GPU: all cores but those that feed it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - max(1, cores // SPARE_CORES))

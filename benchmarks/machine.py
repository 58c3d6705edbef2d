"""What a benchmark ran on, in words."""

import os
import platform


def this_machine() -> str:
    """Processor, cores and Python version."""
    processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"

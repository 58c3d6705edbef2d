"""How long one operator takes on one processor of a machine: max(flops / rate, bytes / bandwidth)."""

from dataclasses import dataclass

import numpy as np

from hrm.roofline.operator import Operator, Quantity
from hrm.spec.hardware import HardwareProfile
from hrm.spec.precision import Precision, cpu_compute_dtype


@dataclass(frozen=True)
class Machine:
    """A profile with the dtypes its processors compute in; all GPUs of the profile work as one (tensor parallel).

    Rates of the GPU and of its own links are sums over the devices: each holds and streams its own shard.
    """

    profile: HardwareProfile
    precision: Precision

    @property
    def tensor_parallel_size(self) -> int:
        """Number of GPUs among which every weight is sharded."""
        return self.profile.device_count

    @property
    def gpu_memory_bytes(self) -> float:
        """Usable GPU memory, all devices."""
        return self.profile.gpu.memory_usable.value * self.tensor_parallel_size

    @property
    def cpu_memory_bytes(self) -> float:
        """Usable CPU memory."""
        return self.profile.cpu.memory_usable.value

    @property
    def disk_bytes(self) -> float:
        """Usable disk; 0 without one."""
        return self.profile.disk.memory_usable.value if self.profile.disk else 0.0

    @property
    def cpu_memory_bytes_per_s(self) -> float:
        """Peak DRAM bandwidth, which CPU work and every copy share."""
        return self.profile.cpu.memory_bandwidth.value

    def compute_seconds(self, level: str, op_class: str, flops: Quantity, rows: Quantity) -> Quantity:
        """flops / (peak * efficiency at `rows` rows of a matmul), seconds."""
        devices = self.tensor_parallel_size if level == "gpu" else 1
        dtype = self.precision.activations if level == "gpu" else cpu_compute_dtype(self.profile, self.precision)
        rate = self.profile.peak_flops_per_s(level, dtype) * devices
        return flops / (rate * self.profile.compute_efficiency(level, op_class, rows))

    def memory_seconds(self, level: str, op_class: str, moved: Quantity) -> Quantity:
        """bytes / (bandwidth * efficiency), seconds."""
        devices = self.tensor_parallel_size if level == "gpu" else 1
        memory = self.profile.gpu if level == "gpu" else self.profile.cpu
        rate = memory.memory_bandwidth.value * devices
        return moved / (rate * self.profile.memory_efficiency(level, op_class))

    def seconds(self, level: str, op: Operator, rows: Quantity) -> Quantity:
        """Roofline time of one operator, Eq. 4-5 of arXiv 2411.11217, with the profile's efficiencies."""
        compute = self.compute_seconds(level, op.op_class, op.flops, rows)
        return np.maximum(compute, self.memory_seconds(level, op.op_class, op.bytes))

    def task_overhead(self, level: str) -> float:
        """Least seconds of a task at `level`; 0 where none was measured, so that the prediction is the roof itself."""
        stated = self.profile.level(level).task_overhead
        return stated.value if stated else 0.0

    def graph_overhead(self) -> float:
        """The same of a GPU task whose launches are one graph; as of any other task where none was measured."""
        stated = self.profile.gpu.graph_overhead
        return stated.value if stated else self.task_overhead("gpu")

    def gate_overhead(self) -> float:
        """Seconds in which the host decides what an expert cache copies; 0 where none were measured."""
        stated = self.profile.cpu.gate_overhead
        return stated.value if stated else 0.0

    def link_bytes_per_s(self, link: str) -> float:
        """Achieved one-way bandwidth of a link; host links add up over the devices."""
        per_device = self.profile.achieved_link_bandwidth(link)
        return per_device * (self.tensor_parallel_size if link in ("htod", "dtoh") else 1)

    def link_latency(self, link: str) -> float:
        """Seconds that each transfer costs on top of its bytes."""
        return self.profile.link_latency(link)

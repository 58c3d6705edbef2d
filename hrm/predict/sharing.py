"""How fast tasks run that draw on the same memory or wire at the same time."""

from dataclasses import dataclass

from hrm.predict.layer_rates import Cost
from hrm.predict.machine import Machine
from hrm.schedule.task import Resource

INBOUND = (Resource.HTOD, Resource.ZERO_COPY)
COPIES = (Resource.HTOD, Resource.ZERO_COPY, Resource.DTOH, Resource.DISK)
Demand = tuple[float, float, float]
"""Share of the inbound wire, of the outbound wire and of the DRAM bandwidth that a task uses at its full rate."""


@dataclass(frozen=True)
class Sharing:
    """The shared parts of a machine: both directions of the host link, and DRAM.

    link_on_pcie: GPU-GPU traffic goes over the lanes of the host links.
    dram_bytes_per_s: bandwidth that copies and CPU work share.
    shared_wire: copies by the copy engine and by kernels share the inbound wire.
    """

    link_on_pcie: bool
    dram_bytes_per_s: float
    shared_wire: bool = True

    def demand(self, resource: Resource, cost: Cost) -> Demand:
        """What a task takes of each shared part when it runs alone.

        Of DRAM, what it takes while it moves bytes: its overhead is not told apart from that time, and is slowed too.
        Of the inbound wire, its mean over both.
        """
        on_link = resource == Resource.LINK and self.link_on_pcie
        moving = cost.seconds - cost.overhead
        inbound = float(self.shared_wire and (resource in INBOUND or on_link))
        if cost.overhead and inbound:
            inbound = moving / cost.seconds
        outbound = float(resource == Resource.DTOH or on_link)
        # Bytes that are a rounding error of shares take no time beside an overhead.
        dram = cost.dram_bytes / (moving * self.dram_bytes_per_s) if cost.dram_bytes and moving > 0 else 0.0
        return inbound, outbound, dram

    def rates(self, running: list[tuple[Resource, Demand]]) -> list[float]:
        """Share of its full rate at which each of the running tasks advances.

        A wire is divided equally by demand. DRAM serves copies first and CPU work with what they leave: measured on a
        machine with 99 GB/s, CPU attention fell from 53 to 46 GB/s beside copies that kept 54.5 of their 55.3 GB/s.
        That copies which fill DRAM alone (both directions at once) leave the CPU nothing is extrapolated.
        """
        rates = [1.0] * len(running)
        for wire in (0, 1):
            total = sum(demand[wire] for _, demand in running)
            if total > 1.0:
                rates = [r / total if d[wire] else r for r, (_, d) in zip(rates, running, strict=True)]
        left = 1.0
        for copies in (True, False):
            group = [i for i, (resource, d) in enumerate(running) if d[2] and (resource in COPIES) == copies]
            total = sum(rates[i] * running[i][1][2] for i in group)
            if total > left:
                for i in group:
                    rates[i] *= left / total
            left = max(0.0, left - total)
        return rates


def sharing_of(machine: Machine) -> Sharing:
    """What the queues of a machine share."""
    links = machine.profile.links
    on_pcie = "gpu_to_gpu" in links and links["gpu_to_gpu"].technology.startswith("PCIe")
    return Sharing(on_pcie, machine.cpu_memory_bytes_per_s)

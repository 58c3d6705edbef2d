"""Why a simulated pass takes longer than its busiest resource: latency, contention, bubbles."""

from dataclasses import dataclass, replace

from hrm.predict.rates import Rates
from hrm.predict.sharing import Sharing
from hrm.predict.simulate import Simulator
from hrm.predict.timeline import Timeline


@dataclass(frozen=True)
class Gap:
    """Seconds of one pass; the four parts add up to the makespan.

    bound: busy seconds of the busiest queue, latencies left out. bubbles: what waiting for each other adds to that;
    latency: what the links' latencies add; contention: what shared memories and wires add, being busier than any
    queue included.
    """

    makespan: float
    bound: float
    binding: str
    bubbles: float
    latency: float
    contention: float

    @property
    def largest(self) -> str:
        """The part that costs most beside the bound."""
        parts = {"bubbles": self.bubbles, "latency": self.latency, "contention": self.contention}
        return max(parts, key=lambda name: parts[name])


def explain_gap(rates: Rates, timeline: Timeline) -> Gap:
    """Simulates a pass again without contention, then without latencies too; the differences are the parts.

    A part can be slightly negative where tasks that are slower let others run earlier.
    """
    graph, real = timeline.graph, timeline.makespan
    alone = Sharing(link_on_pcie=False, dram_bytes_per_s=float("inf"), shared_wire=False)
    uncontended = Simulator(rates, alone).simulate_graph(graph).timeline.makespan
    ideal = Simulator(_without_latency(rates), alone).simulate_graph(graph)
    busy = {str(resource): seconds for resource, seconds in ideal.timeline.busy_seconds.items()}
    binding = max(busy, key=lambda name: busy[name])
    bound = busy[binding]
    return Gap(
        real,
        bound,
        binding,
        ideal.timeline.makespan - bound,
        uncontended - ideal.timeline.makespan,
        real - uncontended,
    )


def _without_latency(rates: Rates) -> Rates:
    profile = rates.machine.profile
    links = {
        name: link.model_copy(update={"latency": link.latency.model_copy(update={"value": 0.0})})
        for name, link in profile.links.items()
    }
    machine = replace(rates.machine, profile=profile.model_copy(update={"links": links}))
    return replace(rates, machine=machine)

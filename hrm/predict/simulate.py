"""The simulator: one pass of a policy as a timeline, or just its seconds."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hrm.predict.durations import TaskCosts
from hrm.predict.event_loop import EventLoop
from hrm.predict.layer_rates import Cost
from hrm.predict.layout import Layout, lay_out
from hrm.predict.program import make_program
from hrm.predict.rates import Rates
from hrm.predict.sharing import Sharing, sharing_of
from hrm.predict.timeline import Timeline
from hrm.schedule.build import CacheStats, build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Resource
from hrm.spec.policy import Policy

MOST_GRAPHS = 16  # structures kept for passes that differ only in their contexts
SHORT_LAYERS = (8, 14)  # layers simulated first where only a pass's seconds are asked for
ROUNDING = 1e-12  # sums of the same durations in different orders
SETTLED = 3  # layers that must be left to the end of a short pass for its repetition to be the long one's


@dataclass(frozen=True)
class PassSimulation:
    """A simulated pass: its timeline, the cost of every task, and the time that no order of tasks could beat."""

    timeline: Timeline
    costs: list[Cost]
    lower_bounds: dict[str, float]

    @property
    def lower_bound_seconds(self) -> float:
        """Busy seconds of the busiest queue, wire or memory; the makespan itself where both differ by rounding only."""
        bound, makespan = max(self.lower_bounds.values()), self.timeline.makespan
        return makespan if abs(bound - makespan) <= ROUNDING * makespan else bound

    @property
    def binding(self) -> str:
        """What is busiest."""
        return max(self.lower_bounds, key=lambda name: self.lower_bounds[name])


class Simulator:
    """Simulates passes of one (model, workload, machine); keeps what passes have in common.

    Durations are roofline times with the profile's efficiencies and link latencies. Left out: kernel launches
    unless the profile states `task_overhead`, norms and sampling, and work of the next pass that could start before
    this one ends (a pass begins when the one before is over, with the pages that its schedule has prefetched).
    """

    def __init__(self, rates: Rates, sharing: Sharing | None = None) -> None:
        self.rates = rates
        self.sharing = sharing or sharing_of(rates.machine)
        self._graphs: dict[object, tuple[TaskGraph, Layout]] = {}

    def simulate(
        self, policy: Policy, work: PassSlice, cache: CacheStats | None = None, shortcut: bool = True
    ) -> PassSimulation:
        """One pass, every task of it.

        Raises:
            PolicyError: as `build_graph`.
        """
        return self.simulate_graph(build_graph(self.rates.sizes, work, policy, cache), shortcut)

    def simulate_graph(self, graph: TaskGraph, shortcut: bool = True) -> PassSimulation:
        """One graph, however it was made.

        Raises:
            ScheduleError: tasks that wait for each other.
        """
        layout = self._lay_out(graph)
        loop, slot_costs = self._run(graph, layout, shortcut)
        costs = [Cost(0.0)] * len(graph.tasks)
        for indices, slots in zip(layout.indices, layout.slots, strict=True):
            for i, slot in zip(indices, slots, strict=True):
                costs[i] = slot_costs[slot]
        timeline = _timeline(graph, costs, layout, loop)
        return PassSimulation(timeline, costs, lower_bounds(graph, costs, self.sharing))

    def pass_seconds(self, policy: Policy, work: PassSlice, cache: CacheStats | None = None) -> float:
        """Makespan of one pass, from a few of its layers where the rest repeats them; equal to the whole
        simulation's. Before it comes what the cache's predictor takes.
        """
        seconds = self._short_seconds(policy, work) if cache is None else None
        if seconds is not None:
            return seconds
        before = cache.forecast_seconds if cache is not None else 0.0
        return before + self.simulate(policy, work, cache).timeline.makespan

    @cached_property
    def _shorter(self) -> "tuple[Simulator, ...]":
        """The same model with its last layers cut, where those are all alike; shortest first."""
        layers = self.rates.model.layers
        if len(set(layers[1:])) > 1:
            return ()
        models = [replace(self.rates.model, layers=layers[:n]) for n in SHORT_LAYERS if n < len(layers)]
        return tuple(Simulator(replace(self.rates, model=model), self.sharing) for model in models)

    def _short_seconds(self, policy: Policy, work: PassSlice) -> float | None:
        """Seconds of a pass from one of fewer layers in which a layer has repeated itself exactly."""
        for short in self._shorter if not policy.caches_whole_experts else ():  # slots are shared by all layers
            graph, layout = short._graph(policy, work)
            settled = (short.rates.model.num_layers - SETTLED) * max(graph.pages.per_layer, default=0)
            if graph.pages.num_slots > settled > 0:
                continue
            loop, _ = short._run(graph, layout)
            if loop.repeats is not None:
                more = self.rates.model.num_layers - short.rates.model.num_layers
                period, seconds = loop.repeats
                if more % period == 0:
                    return loop.makespan + more // period * seconds
        return None

    def _graph(self, policy: Policy, work: PassSlice) -> tuple[TaskGraph, Layout]:
        """A graph of the same structure as an earlier one differs from it only in its contexts."""
        key = (policy, tuple((mb.sequences, mb.gpu_sequences, mb.prompt_tokens) for mb in work.micro_batches))
        if key not in self._graphs:
            if len(self._graphs) >= MOST_GRAPHS:
                self._graphs.clear()
            graph = build_graph(self.rates.sizes, work, policy)
            self._graphs[key] = graph, self._lay_out(graph)
        graph, layout = self._graphs[key]
        return replace(graph, slice=work), layout

    def _lay_out(self, graph: TaskGraph) -> Layout:
        return lay_out(graph, self._layer_class)

    @cached_property
    def _layer_class(self) -> tuple[int, ...]:
        """Equal numbers for equal layers."""
        number = {layer: i for i, (layer, _) in enumerate(self.rates.model.layer_groups)}
        return tuple(number[layer] for layer in self.rates.model.layers)

    def _run(self, graph: TaskGraph, layout: Layout, shortcut: bool = True) -> tuple[EventLoop, list[Cost]]:
        costs = [self._task_costs.of_task(graph.tasks[i], graph) for i in layout.samples]
        loop = EventLoop(make_program(layout, costs, self.sharing), self.sharing, shortcut)
        loop.run()
        return loop, costs

    @cached_property
    def _task_costs(self) -> TaskCosts:
        return TaskCosts(self.rates)


def _timeline(graph: TaskGraph, costs: list[Cost], layout: Layout, loop: EventLoop) -> Timeline:
    start, end = np.zeros(len(graph.tasks)), np.zeros(len(graph.tasks))
    for indices, starts, ends in zip(layout.indices, loop.start, loop.end, strict=True):
        start[list(indices)], end[list(indices)] = starts, ends
    return Timeline(graph, start, end, np.array([cost.seconds for cost in costs]))


def lower_bounds(graph: TaskGraph, costs: list[Cost], sharing: Sharing) -> dict[str, float]:
    """Seconds that each queue is busy at the least, and each wire and memory that queues share."""
    bounds = {str(r): math.fsum(costs[i].seconds for i in queue) for r, queue in graph.queues.items()}
    inbound = [Resource.HTOD, Resource.ZERO_COPY, *([Resource.LINK] if sharing.link_on_pcie else [])]
    on_wire = (costs[i] for r in inbound for i in graph.queues.get(r, ()))
    bounds["inbound_wire"] = math.fsum(cost.seconds - cost.overhead for cost in on_wire)
    dram = math.fsum(cost.dram_bytes for cost in costs)
    bounds["cpu_memory_bandwidth"] = dram / sharing.dram_bytes_per_s
    return bounds

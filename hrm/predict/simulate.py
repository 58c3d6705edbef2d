"""The simulator: one pass of a policy as a timeline, or just its seconds."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hrm.predict.durations import TaskCosts
from hrm.predict.event_loop import EventLoop
from hrm.predict.layer_rates import Cost
from hrm.predict.program import Program, compile_program
from hrm.predict.rates import Rates
from hrm.predict.sharing import Sharing, sharing_of
from hrm.predict.timeline import Timeline
from hrm.schedule.build import CacheStats, build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Resource
from hrm.spec.policy import Policy

SHORT_LAYERS = 10  # layers simulated first where only a pass's seconds are asked for
SETTLED = 3  # layers that must be left to the end of a short pass for its repetition to be the long one's


@dataclass(frozen=True)
class PassSimulation:
    """A simulated pass: its timeline, the cost of every task, and the time that no order of tasks could beat."""

    timeline: Timeline
    costs: list[Cost]
    lower_bounds: dict[str, float]

    @property
    def lower_bound_seconds(self) -> float:
        """Busy seconds of the busiest queue, wire or memory."""
        return max(self.lower_bounds.values())

    @property
    def binding(self) -> str:
        """What is busiest."""
        return max(self.lower_bounds, key=lambda name: self.lower_bounds[name])


class Simulator:
    """Simulates passes of one (model, workload, machine); keeps what passes have in common.

    Durations are roofline times with the profile's efficiencies and link latencies. Left out: kernel launches, norms
    and sampling, and work of the next pass that could start before this one ends (a pass begins when the one before
    is over, with the pages that its schedule has prefetched).
    """

    def __init__(self, rates: Rates, sharing: Sharing | None = None) -> None:
        self.rates = rates
        self.sharing = sharing or sharing_of(rates.machine)
        self._graphs: dict[object, TaskGraph] = {}

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
        costs = self._task_costs.of_graph(graph)
        program = compile_program(graph, costs, self.sharing)
        loop = EventLoop(program, self.sharing, shortcut)
        loop.run()
        timeline = _timeline(graph, costs, program, loop)
        return PassSimulation(timeline, costs, lower_bounds(graph, costs, self.sharing))

    def pass_seconds(self, policy: Policy, work: PassSlice, cache: CacheStats | None = None) -> float:
        """Makespan of one pass, from a few of its layers where the rest repeats them; equal to the whole
        simulation's.
        """
        seconds = self._short_seconds(policy, work) if cache is None else None
        if seconds is not None:
            return seconds
        return self.simulate(policy, work, cache).timeline.makespan

    @cached_property
    def _short(self) -> "Simulator | None":
        """The same model with its last, repeating layers cut; None where they do not repeat."""
        layers = self.rates.model.layers
        if len(layers) <= SHORT_LAYERS or len(set(layers[1:])) > 1:
            return None
        model = replace(self.rates.model, layers=layers[:SHORT_LAYERS])
        return Simulator(replace(self.rates, model=model))

    def _short_seconds(self, policy: Policy, work: PassSlice) -> float | None:
        short = self._short
        if short is None:
            return None
        graph = short._graph(policy, work)
        plan = graph.pages
        if plan.num_slots > (SHORT_LAYERS - SETTLED) * max(plan.per_layer, default=0) > 0:
            return None
        costs = short._task_costs.of_graph(graph)
        loop = EventLoop(compile_program(graph, costs, self.sharing), self.sharing)
        loop.run()
        if loop.repeats is None:
            return None
        period, seconds = loop.repeats
        more = self.rates.model.num_layers - SHORT_LAYERS
        return None if more % period else loop.makespan + more // period * seconds

    def _graph(self, policy: Policy, work: PassSlice) -> TaskGraph:
        """A graph of the same structure as an earlier one differs from it only in its contexts."""
        key = (policy, tuple((mb.sequences, mb.gpu_sequences, mb.prompt_tokens) for mb in work.micro_batches))
        if key not in self._graphs:
            self._graphs[key] = build_graph(self.rates.sizes, work, policy)
        return replace(self._graphs[key], slice=work)

    @cached_property
    def _task_costs(self) -> TaskCosts:
        return TaskCosts(self.rates)


def _timeline(graph: TaskGraph, costs: list[Cost], program: Program, loop: EventLoop) -> Timeline:
    start, end = np.zeros(len(graph.tasks)), np.zeros(len(graph.tasks))
    for indices, starts, ends in zip(program.indices, loop.start, loop.end, strict=True):
        start[list(indices)], end[list(indices)] = starts, ends
    return Timeline(graph, start, end, np.array([cost.seconds for cost in costs]))


def lower_bounds(graph: TaskGraph, costs: list[Cost], sharing: Sharing) -> dict[str, float]:
    """Seconds that each queue is busy at the least, and each wire and memory that queues share."""
    bounds = {str(r): math.fsum(costs[i].seconds for i in queue) for r, queue in graph.queues.items()}
    inbound = [Resource.HTOD, Resource.ZERO_COPY, *([Resource.LINK] if sharing.link_on_pcie else [])]
    bounds["inbound_wire"] = math.fsum(bounds.get(str(r), 0.0) for r in inbound)
    dram = math.fsum(cost.dram_bytes for cost in costs)
    bounds["cpu_memory_bandwidth"] = dram / sharing.dram_bytes_per_s
    return bounds

"""Consecutive passes of the engine: what they reached, and what the roofs allow for the very same passes.

Marks of all passes are read once the last is over, so that reading them idles nothing.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any

from hrm.predict.simulate import PassSimulation, Simulator
from hrm.predict.timeline import Timeline
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Resource
from hrm.spec.policy import Policy
from runtime.device import CpuDevice, CudaDevice
from runtime.pass_run import PassRun

INBOUND = (Resource.HTOD, Resource.ZERO_COPY)


@dataclass(frozen=True)
class Sample:
    """One measured pass; `began` and `ended` are readings of the clock in seconds."""

    run: PassRun
    work: PassSlice
    began: float
    ended: float

    @property
    def decoding(self) -> int:
        """Sequences that decoded, one token each."""
        return sum(mb.sequences for mb in self.work.micro_batches)

    @property
    def prompts(self) -> float:
        """Prompts that were prefilled, each of which gives a token too."""
        return sum(mb.prompts for mb in self.work.micro_batches)

    @property
    def tokens(self) -> float:
        """Tokens generated."""
        return self.decoding + self.prompts


@dataclass
class PassWindow:
    """Samples of consecutive passes."""

    device: CpuDevice | CudaDevice
    simulator: Simulator
    policy: Policy
    samples: list[Sample] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Throughput, the roof's, busy shares and seconds by kind of task; empty without samples."""
        if not self.samples:
            return {}
        self.device.synchronise()
        timelines = [sample.run.timeline(self.device) for sample in self.samples]
        predicted = [self.simulator.simulate(self.policy, sample.work) for sample in self.samples]
        seconds = self.samples[-1].ended - self.samples[0].began
        bound = sum(p.lower_bound_seconds for p in predicted)
        makespan = sum(p.timeline.makespan for p in predicted)
        tokens = sum(sample.tokens for sample in self.samples)
        middle = _median_pass(self.samples)
        return {
            "passes": len(self.samples),
            "seconds_per_pass": [s.ended - s.began for s in self.samples],
            "sequences": [s.decoding for s in self.samples],
            "prompts": [s.prompts for s in self.samples],
            "mean_context": _mean_context(self.samples),
            "tokens_per_s": tokens / seconds,
            "decoded_tokens_per_s": sum(s.decoding for s in self.samples) / seconds,
            "roof_tokens_per_s": tokens / bound,
            "share_of_roof": bound / seconds,
            "roof": _roof(predicted[middle]),
            "simulated_tokens_per_s": tokens / makespan,
            "busy": self._busy(timelines),
            "inbound": _inbound(timelines[middle], predicted[middle]),
            "kinds": _kinds(timelines[middle], predicted[middle].timeline),
        }

    def _busy(self, timelines: list[Timeline]) -> dict[str, float]:
        """Share of the time between the first and the last pass's start that each queue is busy."""
        first = self.samples[0].run.begun
        starts = [self.device.seconds(first, sample.run.begun) for sample in self.samples]
        span = starts[-1] if len(starts) > 1 else timelines[0].makespan
        busy: dict[str, float] = {}
        for start, timeline in zip(starts, timelines, strict=True):
            for resource, queue in timeline.graph.queues.items():
                for i in queue:
                    end, begin = min(span, start + timeline.end[i]), start + timeline.start[i]
                    busy[str(resource)] = busy.get(str(resource), 0.0) + max(0.0, float(end - begin))
        return {name: seconds / span for name, seconds in busy.items()}


def _median_pass(samples: list[Sample]) -> int:
    lengths = [sample.ended - sample.began for sample in samples]
    return lengths.index(statistics.median_low(lengths))


def _mean_context(samples: list[Sample]) -> float:
    """Tokens that a decoding sequence attends, on average."""
    parts = [(mb.sequences, mb.context_len) for sample in samples for mb in sample.work.micro_batches]
    total = sum(count for count, _ in parts)
    return sum(count * context for count, context in parts) / total if total else 0.0


def _roof(predicted: PassSimulation) -> dict[str, Any]:
    """Of the median pass: what binds, and the least seconds of every queue, wire and memory."""
    return {
        "binding": predicted.binding,
        "seconds": predicted.lower_bound_seconds,
        "bounds": predicted.lower_bounds,
    }


def _inbound(measured: Timeline, predicted: PassSimulation) -> dict[str, Any]:
    """Of the median pass, per way to the GPU: bytes that the schedule moves, and bytes per second while it is busy."""
    found = {}
    for resource in INBOUND:
        busy = measured.busy_seconds.get(resource, 0.0)
        queue = predicted.timeline.graph.queues.get(resource, ())
        if queue:
            moved = sum(predicted.costs[i].bytes for i in queue)
            found[str(resource)] = {"bytes": moved, "bytes_per_s": moved / busy if busy else 0.0}
    return found


def _kinds(measured: Timeline, predicted: Timeline) -> dict[str, dict[str, float]]:
    """Of the median pass, seconds by kind of task; `predicted` is of the same graph."""
    found: dict[str, dict[str, float]] = {}
    for i, task in enumerate(measured.graph.tasks):
        row = found.setdefault(task.kind.value, {"tasks": 0, "measured_seconds": 0.0, "predicted_seconds": 0.0})
        row["tasks"] += 1
        row["measured_seconds"] += float(measured.end[i] - measured.start[i])
    for i, task in enumerate(predicted.graph.tasks):
        if task.kind.value in found:
            found[task.kind.value]["predicted_seconds"] += float(predicted.end[i] - predicted.start[i])
    return found

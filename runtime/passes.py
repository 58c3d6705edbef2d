"""One pass after the other: graph, tables, prefetched pages carried over, tokens out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hrm.predict.path_predictions import UNKNOWN, ExpectedDemand
from hrm.predict.timeline import Timeline
from hrm.schedule.build import build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Resource, Task
from runtime.batch import Batch, Rows
from runtime.carrying import Carrying
from runtime.decode_steps import StepsBySize, make_steps
from runtime.device import CpuDevice, CudaDevice
from runtime.experts.recorder import PassRouting, RoutingRecorder
from runtime.experts.replay import RoutingReplay
from runtime.forming import form_batch
from runtime.graphs import CallGraphs
from runtime.kernels.gpu_attention import attends_ragged
from runtime.layouts import PolicyLayout
from runtime.memory.kv_cache import BLOCK
from runtime.model_memory import ModelMemory
from runtime.pass_run import PassRun
from runtime.pipeline import Pipeline
from runtime.sequences import SequenceTable, Slots
from runtime.tables import make_tables
from runtime.tasks.registry import FUNCTIONS
from runtime.tasks.state import PassState
from runtime.wirings import Wirings

Forecast = Callable[[Batch, SequenceTable], ExpectedDemand]


@dataclass(frozen=True)
class PassResult:
    """What a pass gave: a token for each of `slots`; logits [slots, V] where they are kept."""

    slots: Slots
    tokens: Slots
    logits: Tensor | None
    batch: Batch
    seconds: float


@dataclass
class PassRunner:
    """Runs passes over one model's memory; remembers what each has prefetched for the next.

    keep_logits: of every chosen token. keep_runs: every `last_run` stays readable, not only the latest. timed: passes
    have timelines; the marks for them take the host a tenth of a pass that is bound by launches.
    recorder: takes in what every pass's routers chose. forecast: what a decode pass and the next one will choose,
    [MoE layers, E], for an expert cache; None: nothing is known. replay: experts to take instead of the routers'.
    """

    device: CpuDevice | CudaDevice
    memory: ModelMemory
    layout: PolicyLayout
    keep_logits: bool = False
    keep_runs: bool = False
    recorder: RoutingRecorder | None = None
    forecast: Forecast | None = None
    replay: RoutingReplay | None = None
    last_run: PassRun | None = None
    timed: bool = True
    _pipeline: Pipeline = field(init=False)
    _carrying: Carrying = field(init=False)
    _last_slice: PassSlice | None = None
    wirings: Wirings = field(init=False)
    steps: StepsBySize | None = None

    def __post_init__(self) -> None:
        self._pipeline, self.wirings = Pipeline(self.device), Wirings(self.layout)
        self._carrying = Carrying(self.device, self.memory)
        if isinstance(self.device, CudaDevice):
            self.steps = make_steps(self.memory, CallGraphs)

    def run(self, table: SequenceTable) -> PassResult:
        """Everybody in flight takes part. Raises HrmError or OSError where a task fails."""
        began = time.perf_counter()
        batch = form_batch(table, self.layout.policy)
        _reserve(table, batch, self.memory)
        with torch.inference_mode(), self.device.lane(Resource.GPU):
            wiring = self.wirings.of(batch)
            state = self._state(batch, table, wiring.graph)
            if self.replay is not None:
                state.replayed = self.replay.on_device(batch, table, self.device.torch_device)
            self._carrying.prime(state)
            self._begin_cache(batch, table)
        self._carrying.forget()
        before, self.last_run = self.last_run, None
        if before is not None and not self.keep_runs:
            self.device.recycle({*before.starts, *before.ends})  # an end may be the next one's start
        run = self._pipeline.prepare(wiring, lambda i, task: FUNCTIONS[task.kind](state, i, task), self.timed)
        state.signal = run.signal
        self.last_run = self._pipeline.execute(run)
        self._carrying.take_over(state)
        slots, tokens, logits = self._collect(state)
        self._record(state, table)
        if self.memory.slots is not None:
            self.memory.slots.end_pass()
        self.last_run.perform, self._last_slice = _nothing, batch.slice  # the state's tensors are not kept
        return PassResult(slots, tokens, logits, batch, time.perf_counter() - began)

    @property
    def last_timeline(self) -> Timeline | None:
        """Measured starts and ends of the latest pass's tasks, if it was timed; waits for the device."""
        if self.last_run is None or self._last_slice is None or not self.last_run.timed:
            return None
        self.device.synchronise()
        return self.timeline_of(self.last_run, self._last_slice)

    def timeline_of(self, run: PassRun, work: PassSlice) -> Timeline:
        """Of a pass that carried `work`, every mark of which is reached.

        Passes of one structure share a graph; the timeline's says what this one carried.
        """
        timeline = run.timeline(self.device)
        return replace(timeline, graph=build_graph(self.layout.sizes, work, self.layout.policy))

    def close(self) -> None:
        """Ends the threads."""
        self._pipeline.close()

    def _state(self, batch: Batch, table: SequenceTable, graph: TaskGraph) -> PassState:
        paging = self.layout.paging(graph.pages, batch.slice.decodes)
        if paging.pool_bytes > len(self.memory.pool):
            self.memory.pool = torch.empty(paging.pool_bytes, dtype=torch.uint8, device=self.device.torch_device)
            self._carrying.pool_is_new()
        staging = self.memory.staging("tables", None)
        ragged = attends_ragged(self.device.torch_device, self.memory.config.dtype)
        tables = make_tables(batch, table, staging, self.device.torch_device, ragged)
        self.memory.reserve_kv_buffers(max(_staged_blocks(rows, table) for rows in batch.rows))
        sent = self.device.mark()
        with self.device.lane(Resource.HTOD):  # whose first tasks wait for nothing else, and read the tables
            self.device.order_after(sent)
        routing = None if self.recorder is None else PassRouting()
        held, decode, steps = self._carrying.held, tables[0].decode, None
        if self.steps is not None and graph.repeats_steps:
            assert decode is not None
            steps = self.steps.of(len(batch.rows[0].slots))
            if steps is not None:
                steps.begin(decode)
        return PassState(
            self.device, self.memory, graph, paging, batch, tables, held, self.keep_logits, routing, steps=steps
        )

    def _begin_cache(self, batch: Batch, table: SequenceTable) -> None:
        """Tells the expert cache what the pass will need: of prompts, every expert."""
        slots = self.memory.slots
        if slots is None:
            return
        if any(rows.is_prefill for rows in batch.rows):
            slots.begin_pass(ExpectedDemand(np.ones((len(slots.moe_layers), self.memory.config.num_experts))))
        else:
            slots.begin_pass(UNKNOWN if self.forecast is None else self.forecast(batch, table))

    def _collect(self, state: PassState) -> tuple[Slots, Slots, Tensor | None]:
        """Tokens to the host, once the GPU has them and all K, V are stored."""
        places = [j for j in range(len(state.batch.rows)) if j in state.tokens]
        with torch.inference_mode(), self.device.lane(Resource.GPU):
            tokens = torch.cat([state.tokens[j] for j in places]) if places else torch.empty(0, dtype=torch.int64)
            found = tokens.cpu().numpy()
            logits = torch.cat([state.logits[j] for j in places]).cpu() if state.keep_logits and places else None
        for resource in (Resource.GPU, Resource.DTOH):
            with self.device.lane(resource):
                self.device.host_wait(self.device.mark())
        slots = [slot for j in places for slot in state.batch.rows[j].logit_slots]
        return np.array(slots, np.int64), found, logits

    def _record(self, state: PassState, table: SequenceTable) -> None:
        """What the routers chose, in one copy."""
        if self.recorder is not None and state.routing is not None:
            with torch.inference_mode(), self.device.lane(Resource.GPU):
                self.recorder.add(state.batch, table, state.routing)


def _nothing(index: int, task: Task) -> None:
    """In the place of what a pass that is over performed."""


def _staged_blocks(rows: Rows, table: SequenceTable) -> int:
    """Blocks of K, V that cross for a micro-batch at the end of its sequences, so that its buffers never grow."""
    streamed = rows.slots[rows.resident : rows.gpu_sequences]
    return int((-(-(table.prompt[streamed] + table.target[streamed]) // BLOCK)).sum())


def _reserve(table: SequenceTable, batch: Batch, memory: ModelMemory) -> None:
    """Blocks for every token of the pass."""
    slots, counts = table.in_flight, np.where(table.made > 0, 1, table.prompt - table.cached)
    table.reserve(slots, counts[slots], memory.kv.pools)

"""What the cache says about a layer's routed tokens. T tokens, H hidden_size, k top_k."""

import time
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.expert_cache import GatePlan
from runtime.experts.cache import ExpertSlots
from runtime.kernels.few_rows import FewRows
from runtime.kernels.slot_ffn import DeviceRows
from runtime.kernels.slot_rows import Placed
from runtime.models.family import Routed
from runtime.tasks.state import PassState


@dataclass
class LayerPlan:
    """A layer's experts under way. steps: the experts in place, then every wave, with their slots.

    Per micro-batch: experts [T, k] on the host; on the device, which rows each step computes, their inputs [R, H], and
    in fp32 either every row's output [R, H], added up once all are there, so that sums do not depend on what was in
    place; or for many tokens the sums so far, [T, H]. users: who has yet to be done with it, the GPU and where it has
    experts the CPU.
    """

    place: int  # among MoE layers
    plan: GatePlan
    steps: list[Placed]
    experts: dict[int, NDArray[np.int64]]
    users: int
    lock: Lock = field(default_factory=Lock)  # of users
    rows: dict[int, DeviceRows] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    each: dict[int, Tensor] = field(default_factory=dict)
    few: dict[int, FewRows] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)


def slots_of(state: PassState) -> ExpertSlots:
    """The expert cache's."""
    assert state.memory.slots is not None
    return state.memory.slots


def send_choices(state: PassState, j: int, routed: Routed) -> None:
    """A micro-batch's experts to the host, right behind its router and past the copy engine."""
    if state.memory.slots is not None and routed.experts is not None:
        state.choices[j] = state.memory.staging("choices", j).store(routed.experts), state.device.spun_mark()


def layer_plan(state: PassState, layer: int) -> LayerPlan:
    """What the cache says about a layer's routed tokens; made by the first who asks, who waits for the routers.

    Whoever asks for a plan that is made waits for nobody: the routers of the next layer may wait for what it does.
    """
    found = state.layer_plans.get(layer)
    if found is not None:
        return found
    with state.plan_lock:
        if layer not in state.layer_plans:
            state.layer_plans[layer] = _make_plan(state, layer)
        return state.layer_plans[layer]


def _make_plan(state: PassState, layer: int) -> LayerPlan:
    experts, leaves = _routed_experts(state), state.uses_cpu_experts(layer, 0)
    began = time.perf_counter()
    counts = np.bincount(np.concatenate([chosen.reshape(-1) for chosen in experts.values()]))
    touched, place = np.flatnonzero(counts), state.memory.moe_place(layer)
    plan = slots_of(state).gate(state.device, place, touched.tolist(), counts[touched].tolist(), leaves)
    steps: list[Placed] = [plan.hits, *([(f.expert, f.slot) for f in wave] for wave in plan.waves)]
    slots_of(state).deciding.add(time.perf_counter() - began)
    return LayerPlan(place, plan, steps, experts, 1 + leaves)


def release_plan(state: PassState, layer: int) -> None:
    """One of its users is done with a layer's plan; the last one drops it."""
    under_way = state.layer_plans[layer]
    with under_way.lock:
        under_way.users -= 1
        last = not under_way.users
    if last:
        del state.layer_plans[layer]


def _routed_experts(state: PassState) -> dict[int, NDArray[np.int64]]:
    """Per micro-batch [T, k]; waits for each."""
    found = {}
    for j, (chosen, mark) in sorted(state.choices.items()):
        state.device.host_wait(mark)
        state.device.recycle((mark,))
        found[j] = chosen.numpy().copy()
    state.choices.clear()
    return found

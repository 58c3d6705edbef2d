"""Experts in slots: copied ahead, corrected after the router, computed in place. T tokens, H hidden_size, k top_k."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.expert_cache import GatePlan
from hrm.schedule.task import Resource, Task
from runtime.kernels.slot_ffn import SlotWeights, add_slots, rows_in_slots
from runtime.tasks.state import PassState


@dataclass
class LayerPlan:
    """A layer's experts under way. experts, sums: per micro-batch, [T, k] on the host and [T, H] fp32 on the device."""

    place: int  # among MoE layers
    plan: GatePlan
    experts: dict[int, NDArray[np.int64]]
    sums: dict[int, Tensor] = field(default_factory=dict)
    steps: int = 0


def expert_prefetch(state: PassState, index: int, task: Task) -> None:
    """Copies what the cache wants next, for this layer or for others."""
    slots = state.memory.slots
    assert slots is not None
    slots.prefetch(state.device)


def expert_correction(state: PassState, index: int, task: Task) -> None:
    """Waits for the layer's routers, and copies what they chose and no slot holds, as far as slots are free."""
    slots, plan = state.memory.slots, layer_plan(state, task.layer).plan
    assert slots is not None
    in_use = {slot for _, slot in plan.hits}
    for fetch in plan.waves[0] if plan.waves else ():
        if fetch.slot not in in_use:
            slots.copy(state.device, fetch, by_kernel=task.resource == Resource.ZERO_COPY)


def layer_plan(state: PassState, layer: int) -> LayerPlan:
    """What the cache says about a layer's routed tokens; made by the first who asks, who waits for the routers."""
    slots = state.memory.slots
    assert slots is not None
    with slots.lock:
        if layer not in state.layer_plans:
            experts = _routed_experts(state)
            touched = np.unique(np.concatenate([chosen.reshape(-1) for chosen in experts.values()]))
            place = slots.moe_layers.index(layer)
            state.layer_plans[layer] = LayerPlan(place, slots.gate(place, touched.tolist()), experts)
        return state.layer_plans[layer]


def _routed_experts(state: PassState) -> dict[int, NDArray[np.int64]]:
    """Per micro-batch [T, k], in one copy."""
    chosen = {j: routed.experts for j, routed in sorted(state.routed.items()) if routed.experts is not None}
    whole = torch.cat(list(chosen.values())).cpu().numpy()
    borders = np.cumsum([len(experts) for experts in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(whole, borders), strict=True))


def cached_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """The first task of a layer computes the experts in place, the last the corrected ones, wave by wave."""
    slots, under_way = state.memory.slots, layer_plan(state, task.layer)
    assert slots is not None
    plan = under_way.plan
    if index != state.last_expert_task[task.layer, task.micro_batch]:
        _compute(state, under_way, dict(plan.hits))
        return
    in_use = {slot for _, slot in plan.hits}
    for number, wave in enumerate(plan.waves):
        for fetch in wave:
            if number > 0 or fetch.slot in in_use:
                slots.copy(state.device, fetch, by_kernel=True)
        _compute(state, under_way, {fetch.expert: fetch.slot for fetch in wave})
    for j in state.members(None):
        state.hidden[j] = state.hidden[j] + under_way.sums[j].to(state.hidden[j].dtype)
        del state.routed[j]
    slots.complete(under_way.place)
    del state.layer_plans[task.layer]


def _compute(state: PassState, under_way: LayerPlan, slot_of: dict[int, int]) -> None:
    """Adds what the experts in these slots give to the sums of every micro-batch."""
    memory, slots = state.memory, state.memory.slots
    assert slots is not None
    slots.await_copies(state.device, slot_of.values())
    weights = SlotWeights(slots.expert, slots.stacked)
    for j, chosen in under_way.experts.items():
        routed = state.routed[j]
        assert routed.normed is not None and routed.weights is not None
        if j not in under_way.sums:
            under_way.sums[j] = torch.zeros(routed.normed.shape, dtype=torch.float32, device=state.torch_device)
        rows = rows_in_slots(chosen, slot_of, memory.config.num_experts)
        staging = memory.staging(f"slots of layer {under_way.place}, step {under_way.steps}", j)
        gates = routed.weights.float()
        add_slots(under_way.sums[j], routed.normed, gates, rows, weights, len(slots.memory), staging)
    slots.note_use(state.device, slot_of.values())
    under_way.steps += 1

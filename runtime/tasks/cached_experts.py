"""Experts in slots: copied ahead, corrected after the router, computed in place. T tokens, H hidden_size, k top_k."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.expert_cache import GatePlan
from hrm.roofline.sizes import EXPERT_PIECE_BYTES
from hrm.schedule.task import Resource, Task
from runtime.experts.cache import ExpertSlots
from runtime.kernels.slot_ffn import (
    SlotWeights,
    bring_over,
    fill_grouped,
    fill_one_by_one,
    rows_in_slots,
    runs_grouped,
    weighted_sum,
)
from runtime.tasks.state import PassState


@dataclass
class LayerPlan:
    """A layer's experts under way. Per micro-batch: experts [T, k] on the host; on the device, fp32, either every
    choice's output [T k, H], added up once all are there, so that sums do not depend on what was in place; or for many
    tokens the sums so far, [T, H].
    """

    place: int  # among MoE layers
    plan: GatePlan
    experts: dict[int, NDArray[np.int64]]
    each: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    steps: int = 0


def _slots(state: PassState) -> ExpertSlots:
    assert state.memory.slots is not None
    return state.memory.slots


def expert_prefetch(state: PassState, index: int, task: Task) -> None:
    """Copies what the cache wants next, for this layer or for others."""
    _slots(state).prefetch(state.device)


def expert_correction(state: PassState, index: int, task: Task) -> None:
    """Waits for the layer's routers, and copies what they chose and no slot holds, as far as slots are free."""
    plan = layer_plan(state, task.layer).plan
    in_use = {slot for _, slot in plan.hits}
    for fetch in plan.waves[0] if plan.waves else ():
        if fetch.slot not in in_use:
            _slots(state).copy(state.device, fetch, by_kernel=task.resource == Resource.ZERO_COPY)


def layer_plan(state: PassState, layer: int) -> LayerPlan:
    """What the cache says about a layer's routed tokens; made by the first who asks, who waits for the routers."""
    slots = _slots(state)
    with state.plan_lock:
        if layer not in state.layer_plans:
            experts = _routed_experts(state)
            touched = np.unique(np.concatenate([chosen.reshape(-1) for chosen in experts.values()]))
            place = state.memory.moe_place(layer)
            plan = slots.gate(state.device, place, touched.tolist())
            state.layer_plans[layer] = LayerPlan(place, plan, experts)
        return state.layer_plans[layer]


def _routed_experts(state: PassState) -> dict[int, NDArray[np.int64]]:
    """Per micro-batch [T, k], in one copy."""
    chosen = {j: routed.experts for j, routed in sorted(state.routed.items()) if routed.experts is not None}
    whole = torch.cat(list(chosen.values())).cpu().numpy()
    borders = np.cumsum([len(experts) for experts in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(whole, borders), strict=True))


def cached_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """The first task of a layer computes the experts in place, the last the corrected ones, wave by wave."""
    under_way = layer_plan(state, task.layer)
    plan = under_way.plan
    if index != state.last_expert_task[task.layer, task.micro_batch]:
        _compute(state, under_way, dict(plan.hits))
        return
    in_use = {slot for _, slot in plan.hits}
    for number, wave in enumerate(plan.waves):
        for fetch in wave:
            if number > 0 or fetch.slot in in_use:
                _slots(state).copy(state.device, fetch, by_kernel=True)
        _compute(state, under_way, {fetch.expert: fetch.slot for fetch in wave})
    _finish(state, under_way)
    del state.layer_plans[task.layer]


def _compute(state: PassState, under_way: LayerPlan, slot_of: dict[int, int]) -> None:
    """What the experts in these slots give for every micro-batch."""
    if not slot_of:
        return
    memory, slots = state.memory, _slots(state)
    slots.await_copies(state.device, slot_of.values())
    weights = SlotWeights(len(slots.memory), slots.expert, slots.stacked)
    rows = {j: rows_in_slots(chosen, slot_of, memory.config.num_experts) for j, chosen in under_way.experts.items()}
    inputs = {j: _normed(state, j) for j in rows}
    grouped = runs_grouped(next(iter(inputs.values())), weights)
    staging = memory.staging(f"slots of layer {under_way.place}, step {under_way.steps}", None)
    groups = bring_over(rows, weights.count, staging, state.torch_device) if grouped else {}
    for j, x in inputs.items():
        each = _outputs(state, under_way, j)
        if grouped:
            fill_grouped(each, x, memory.config.top_k, groups[j], weights)
        else:
            fill_one_by_one(each, x, memory.config.top_k, rows[j], weights)
        if not _keeps_choices(state, under_way):
            _add(state, under_way, j, each)
    slots.note_use(state.device, slot_of.values())
    under_way.steps += 1


def _normed(state: PassState, j: int) -> Tensor:
    normed = state.routed[j].normed
    assert normed is not None
    return normed


def _keeps_choices(state: PassState, under_way: LayerPlan) -> bool:
    """Whether the outputs of all choices of all tokens are little memory."""
    pairs = sum(chosen.size for chosen in under_way.experts.values())
    return pairs * state.memory.config.hidden_size * torch.float32.itemsize <= EXPERT_PIECE_BYTES


def _outputs(state: PassState, under_way: LayerPlan, j: int) -> Tensor:
    """[T k, H] zeros, or what earlier steps have left there."""
    if j in under_way.each:
        return under_way.each[j]
    shape = under_way.experts[j].size, state.memory.config.hidden_size
    each = torch.zeros(shape, dtype=torch.float32, device=state.torch_device)
    if _keeps_choices(state, under_way):
        under_way.each[j] = each
    return each


def _add(state: PassState, under_way: LayerPlan, j: int, each: Tensor) -> None:
    gates = state.routed[j].weights
    assert gates is not None
    added = weighted_sum(each, gates.float())
    under_way.sums[j] = under_way.sums[j] + added if j in under_way.sums else added


def _finish(state: PassState, under_way: LayerPlan) -> None:
    """Adds everything to the hidden states; the layer's slots may go to others."""
    for j in list(under_way.each):
        _add(state, under_way, j, under_way.each.pop(j))
    for j in state.members(None):
        state.hidden[j] = state.hidden[j] + under_way.sums[j].to(state.hidden[j].dtype)
        del state.routed[j]
    _slots(state).complete(under_way.place)

"""Experts in slots: copied ahead, corrected after the router, computed in place. T tokens, H hidden_size, k top_k."""

import torch
from torch import Tensor

from hrm.roofline.sizes import EXPERT_PIECE_BYTES
from hrm.schedule.task import Resource, Task
from runtime.kernels.slot_ffn import (
    SlotWeights,
    bring_over,
    fill_grouped,
    fill_one_by_one,
    rows_in_slots,
    runs_grouped,
    weighted_sum,
)
from runtime.tasks.layer_plan import LayerPlan, layer_plan, release_plan, slots_of
from runtime.tasks.state import PassState


def expert_prefetch(state: PassState, index: int, task: Task) -> None:
    """Copies what the cache wants next, for this layer or for others."""
    slots_of(state).prefetch(state.device)


def expert_correction(state: PassState, index: int, task: Task) -> None:
    """Waits for the layer's routers, and copies what they chose and no slot holds, as far as slots are free."""
    plan = layer_plan(state, task.layer).plan
    in_use = {slot for _, slot in plan.hits}
    for fetch in plan.waves[0] if plan.waves else ():
        if fetch.slot not in in_use:
            slots_of(state).copy(state.device, fetch, by_kernel=task.resource == Resource.ZERO_COPY)


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
                slots_of(state).copy(state.device, fetch, by_kernel=True)
        _compute(state, under_way, {fetch.expert: fetch.slot for fetch in wave})
    _finish(state, under_way, task.layer)
    release_plan(state, task.layer)


def _compute(state: PassState, under_way: LayerPlan, slot_of: dict[int, int]) -> None:
    """What the experts in these slots give for every micro-batch."""
    if not slot_of:
        return
    memory, slots = state.memory, slots_of(state)
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


def _finish(state: PassState, under_way: LayerPlan, layer: int) -> None:
    """Adds everything but what the CPU computes to the hidden states; the layer's slots may go to others."""
    for j in list(under_way.each):
        _add(state, under_way, j, under_way.each.pop(j))
    for j in state.members(None):
        if j in under_way.sums:
            state.hidden[j] = state.hidden[j] + under_way.sums.pop(j).to(state.hidden[j].dtype)
        if not state.uses_cpu_experts(layer, j):
            del state.routed[j]
    slots_of(state).complete(under_way.place)

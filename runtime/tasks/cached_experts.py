"""Experts in slots: copied ahead, corrected after the router, computed in place."""

from hrm.predict.cache_plan import Fetch
from hrm.schedule.task import Resource, Task
from runtime.tasks.layer_plan import LayerPlan, layer_plan, release_plan, slots_of
from runtime.tasks.slot_sums import compute_step, finish_sums
from runtime.tasks.state import PassState


def expert_prefetch(state: PassState, index: int, task: Task) -> None:
    """Copies what the cache wants next, for this layer or for others."""
    slots_of(state).prefetch(state.device)


def expert_correction(state: PassState, index: int, task: Task) -> None:
    """Waits for the layer's routers, and copies what they chose and no slot holds, as far as slots are free."""
    free, _ = _first_wave(layer_plan(state, task.layer))
    slots_of(state).copy(state.device, free, by_kernel=task.resource == Resource.ZERO_COPY)


def cached_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """The first task of a layer computes the experts in place, the last the corrected ones, wave by wave."""
    under_way = layer_plan(state, task.layer)
    if index != state.last_expert_task[task.layer, task.micro_batch]:
        compute_step(state, under_way, 0)
        return
    for number, wave in enumerate(under_way.plan.waves):
        waiting = wave if number else _first_wave(under_way)[1]
        slots_of(state).copy(state.device, waiting, by_kernel=True)
        compute_step(state, under_way, number + 1)
    finish_sums(state, under_way, task.layer)
    release_plan(state, task.layer)


def _first_wave(under_way: LayerPlan) -> tuple[list[Fetch], list[Fetch]]:
    """Copies into slots that hold no hit, and those that wait until the hits are computed."""
    in_use = {slot for _, slot in under_way.plan.hits}
    wave = under_way.plan.waves[0] if under_way.plan.waves else ()
    return [f for f in wave if f.slot not in in_use], [f for f in wave if f.slot in in_use]

"""What the cache says about a layer's routed tokens. T tokens, H hidden_size, k top_k."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.expert_cache import GatePlan
from runtime.experts.cache import ExpertSlots
from runtime.tasks.state import PassState


@dataclass
class LayerPlan:
    """A layer's experts under way. Per micro-batch: experts [T, k] on the host; on the device, fp32, either every
    choice's output [T k, H], added up once all are there, so that sums do not depend on what was in place; or for many
    tokens the sums so far, [T, H]. users: who has yet to be done with it, the GPU and where it has experts the CPU.
    """

    place: int  # among MoE layers
    plan: GatePlan
    experts: dict[int, NDArray[np.int64]]
    users: int
    each: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    steps: int = 0


def slots_of(state: PassState) -> ExpertSlots:
    """The expert cache's."""
    assert state.memory.slots is not None
    return state.memory.slots


def layer_plan(state: PassState, layer: int) -> LayerPlan:
    """What the cache says about a layer's routed tokens; made by the first who asks, who waits for the routers."""
    with state.plan_lock:
        if layer not in state.layer_plans:
            experts, leaves = _routed_experts(state), state.uses_cpu_experts(layer, 0)
            every = np.concatenate([chosen.reshape(-1) for chosen in experts.values()])
            touched, tokens = np.unique(every, return_counts=True)
            place = state.memory.moe_place(layer)
            plan = slots_of(state).gate(state.device, place, touched.tolist(), tokens.tolist(), leaves)
            state.layer_plans[layer] = LayerPlan(place, plan, experts, 1 + leaves)
        return state.layer_plans[layer]


def release_plan(state: PassState, layer: int) -> None:
    """One of its users is done with a layer's plan; the last one drops it."""
    with state.plan_lock:
        under_way = state.layer_plans[layer]
        under_way.users -= 1
        if not under_way.users:
            del state.layer_plans[layer]


def _routed_experts(state: PassState) -> dict[int, NDArray[np.int64]]:
    """Per micro-batch [T, k], in one copy."""
    chosen = {j: routed.experts for j, routed in sorted(state.routed.items()) if routed.experts is not None}
    whole = torch.cat(list(chosen.values())).cpu().numpy()
    borders = np.cumsum([len(experts) for experts in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(whole, borders), strict=True))

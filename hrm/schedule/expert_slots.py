"""How many whole experts the slots of a policy's expert cache hold, and what that leaves for prefetching."""

import math

from hrm.errors import PolicyError
from hrm.roofline.sizes import Sizes
from hrm.spec.policy import Policy

ROUNDING = 1e-9


def num_expert_slots(sizes: Sizes, policy: Policy) -> int:
    """floor(r_w x experts of all layers).

    Raises:
        PolicyError: a model without routed experts, or fewer slots than a token chooses experts.
    """
    model = sizes.model
    if not model.num_moe_layers:
        raise PolicyError(f"policy: expert_cache {policy.expert_cache} needs routed experts; {model.name} has none")
    top_k = largest_top_k(sizes)
    slots = math.floor(policy.weights_on_gpu * sizes.num_experts_total + ROUNDING)
    if slots < top_k:
        total = sizes.num_experts_total
        raise PolicyError(
            f"policy: weights_on_gpu {policy.weights_on_gpu:g} makes {slots} slots of {total} experts; expert_cache "
            f"{policy.expert_cache} needs {top_k}, the experts that a token of {model.name} chooses; raise "
            f"weights_on_gpu to {top_k / total:.4g}"
        )
    return slots


def largest_top_k(sizes: Sizes) -> int:
    """Experts that a token chooses in a layer: the fewest slots that can run it."""
    return max(layer.ffn.top_k for layer, _ in sizes.model.layer_groups if layer.ffn.is_moe)


def prefetchable_share(sizes: Sizes, policy: Policy, touched: float) -> float:
    """Most of a layer's touched experts that can be copied ahead: slots beside r_w of them and the layer before's.

    `touched`: share of a layer's experts that a pass's tokens choose.
    """
    needed = touched * sizes.num_experts_total / sizes.num_expert_layers
    return max(0.0, num_expert_slots(sizes, policy) / needed - 1.0 - policy.weights_on_gpu)

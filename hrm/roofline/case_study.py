"""The two case studies of the hierarchical roofline paper, for any machine and model.

Source: MoE-Lightning (arXiv 2411.11217) Fig. 4 (attention) and Fig. 5 (MoE FFN) and Eq. 9-11. Differences: attention
flops include PV, so its intensity is twice the paper's; peaks are dense, bandwidth is decimal, and where the profile
states measured roofs the turning points lie on those.
"""

from collections.abc import Sequence
from dataclasses import replace

from hrm.roofline.attention import decode_attention
from hrm.roofline.chart import Chart, Choice, Mark, Trajectory, TrajectoryStep
from hrm.roofline.linear import expert_operator
from hrm.roofline.machine_roofs import gpu_over_link, machine_roofs
from hrm.roofline.roofs import HierarchicalRoofline
from hrm.spec.hardware import HardwareProfile
from hrm.spec.model import ModelSpec
from hrm.spec.precision import Precision

BATCH_SIZES = (32, 128, 1024, 16384)
TRAJECTORY = ((8, 8), (32, 32), (128, 128), (1024, 128), (8192, 128), (8192, 512), (32768, 2048))
NARROW_KV = "int4"


def ffn_case(
    profile: HardwareProfile,
    model: ModelSpec,
    precision: Precision,
    micro_batch_size: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    devices: int = 1,
) -> Chart:
    """Expert FFN streamed from CPU memory: which batch size keeps which roof busy (Fig. 5).

    Each weight crosses the link (and is read from CPU memory) once per batch of N tokens, and is read from GPU memory
    once per micro-batch of mu; activations count at the GPU only.

    Raises:
        ProfileError: a number that the profile does not state.
    """
    roofs = machine_roofs(profile, precision, "expert_ffn", devices)
    hierarchy = gpu_over_link(roofs)
    near = near_intensity(model, precision, micro_batch_size)
    kernel = Mark(f"mu = {micro_batch_size:,}", near, float(hierarchy.near.attainable(near)))
    lines = [_choice(f"N = {n:,}", hierarchy, near, far_intensity(model, precision, n)) for n in batch_sizes]
    noun = "MoE FFN" if model.num_moe_layers else "FFN"
    title = f"{noun} of {model.name} ({precision.expert_weights}) on {profile.name}"
    p1, p2, balance = turning_points(hierarchy, near)
    return Chart(title, roofs, hierarchy, (), tuple(lines), kernel, p1, p2, balance)


def attention_case(
    profile: HardwareProfile,
    model: ModelSpec,
    precision: Precision,
    context_len: int,
    kv_dtypes: Sequence[str] | None = None,
    devices: int = 1,
) -> Chart:
    """Decode attention with the KV cache in CPU memory: left of P1 it belongs on the CPU (Fig. 4).

    A line per KV format (default: the precision's own, and int4). Its intensity depends on neither N nor mu, since
    every sequence reads its own cache.

    Raises:
        ProfileError: a number that the profile does not state. UnknownNameError: an unknown format.
    """
    roofs = machine_roofs(profile, precision, "attention", devices)
    hierarchy = gpu_over_link(roofs)
    dtypes = tuple(dict.fromkeys(kv_dtypes or (precision.kv_cache, NARROW_KV)))
    lines = []
    for dtype in dtypes:
        intensity = attention_intensity(model, replace(precision, kv_cache=dtype), context_len)
        lines.append(_choice(f"{dtype} KV", hierarchy, intensity, intensity))
    title = f"Decode attention of {model.name}, context {context_len:,}, on {profile.name}"
    return Chart(title, roofs, hierarchy, lines=tuple(lines), p1=turning_points(hierarchy, lines[0].intensity)[0])


def ffn_trajectory(
    profile: HardwareProfile,
    model: ModelSpec,
    precision: Precision,
    sizes: Sequence[tuple[int, int]] = TRAJECTORY,
) -> Trajectory:
    """The expert FFN as (N, mu) of `sizes` grow: its intensities and the rate it attains on the GPU.

    Raises:
        ProfileError: a number that the profile does not state.
    """
    roofs = machine_roofs(profile, precision, "expert_ffn")
    hierarchy = gpu_over_link(roofs)
    steps = []
    for n, mu in sizes:
        far, near = far_intensity(model, precision, n), near_intensity(model, precision, mu)
        steps.append(TrajectoryStep(n, mu, far, near, float(hierarchy.attainable(near, far))))
    noun = "MoE FFN" if model.num_moe_layers else "FFN"
    title = f"{noun} of {model.name} ({precision.expert_weights}) on {profile.name} as N and mu grow"
    return Trajectory(title, roofs, tuple(steps))


def near_intensity(model: ModelSpec, precision: Precision, micro_batch_size: float) -> float:
    """Flops per byte of GPU memory: weights and activations of one micro-batch."""
    return float(expert_operator(model, precision, micro_batch_size).operational_intensity)


def far_intensity(model: ModelSpec, precision: Precision, batch_size: float) -> float:
    """Flops per byte over the link, and of CPU memory: the weights once; hidden states stay on the GPU."""
    op = expert_operator(model, precision, batch_size)
    return float(op.flops / op.weight_bytes)


def attention_intensity(model: ModelSpec, precision: Precision, context_len: float) -> float:
    """Flops (scores and PV) per byte of one decode step: KV cache, queries and output."""
    parts = decode_attention(model, precision, 1.0, float(context_len))
    return sum(float(p.flops) for p in parts) / sum(float(p.bytes) for p in parts)


def turning_points(hierarchy: HierarchicalRoofline, near: float) -> tuple[Mark | None, Mark, Mark]:
    """P1 (None where streaming is always faster), P2 and the balance point, on the link's roof."""
    p1, p2 = hierarchy.turning_point_p1, hierarchy.turning_point_p2(near)
    balance, link = hierarchy.balance_far_intensity(near), hierarchy.link_bytes_per_s
    first = Mark("P1", p1, link * p1) if p1 else None
    return first, Mark("P2", p2, link * p2), Mark("balance", balance, link * balance)


def _choice(label: str, hierarchy: HierarchicalRoofline, near: float, far: float) -> Choice:
    in_place = float(hierarchy.far.attainable(far)) if hierarchy.far.peak_flops_per_s else 0.0
    return Choice(label, far, float(hierarchy.attainable(near, far)), in_place)

"""Places every operator of a policy under the roofs of its machine, at the rate it runs in the longest pass."""

from hrm.predict.closed_form import predict
from hrm.predict.operator_loads import Load, operator_loads
from hrm.predict.rates import Rates
from hrm.predict.shapes import generation_passes
from hrm.roofline.case_study import attention_intensity, ffn_case, turning_points
from hrm.roofline.chart import Chart, Mark, OperatorPoint, Roof, place_operator
from hrm.roofline.machine_roofs import gpu_over_link, machine_roofs
from hrm.spec.policy import Policy

SMALLEST_SHARE = 0.005
SMALLEST_SHOWN = 0.02
NO_BYTES = 1e3  # what rounding of the shares leaves over is no traffic


def policy_chart(rates: Rates, policy: Policy) -> Chart:
    """All operators of a policy in its longest pass, under the datasheet's compute and memory roofs.

    Raises:
        PolicyError: the policy does not fit. RooflineError: a point above its roof.
    """
    points, name, seconds = _longest_pass(rates, policy)
    roofs = tuple(_without_efficiency(r) for r in _roofs(rates, "linear"))
    title = f"{rates.model.name} on {rates.machine.profile.name}: {name} pass of {seconds:.2f} s"
    return Chart(title, roofs, operators=points)


def policy_points(rates: Rates, policy: Policy) -> tuple[OperatorPoint, ...]:
    """Every operator of a policy in its longest pass: intensity at each memory level, at flops / pass seconds.

    An operator whose data crosses the link lies on the link's roof when the link is the bottleneck. Streamed data has
    the same intensity in CPU memory as over the link, which is given once. Rates are those of the whole machine, each
    point under the measured roofs of its class. Operators below 0.5 % of the pass are left out.

    Raises:
        PolicyError: the policy does not fit. RooflineError: a point above its roof.
    """
    return _longest_pass(rates, policy)[0]


def policy_panels(rates: Rates, policy: Policy) -> tuple[Chart, Chart]:
    """The operators that multiply by weights, and those of attention, each under the measured roofs of their class.

    Turning points as in the case studies, at the FFN's intensity in GPU memory under this policy. Leaves out operators
    below 2 % of the pass, and the roofs of disk and GPU-GPU link where no operator's bytes are counted there.

    Raises:
        PolicyError: the policy does not fit. RooflineError: a point above its roof.
    """
    points = tuple(p for p in policy_points(rates, policy) if p.share > SMALLEST_SHOWN)
    return _ffn_panel(rates, points), _attention_panel(rates, points)


def _ffn_panel(rates: Rates, points: tuple[OperatorPoint, ...]) -> Chart:
    operators = tuple(p for p in points if p.op_class != "attention")
    roofs = _used(_roofs(rates, "expert_ffn"), operators)
    hierarchy = gpu_over_link(roofs)
    near = next((p.levels[0].intensity for p in operators if p.op_class == "expert_ffn" and p.processor == "gpu"), None)
    title = f"{rates.model.name} on {rates.machine.profile.name}: FFN and projections"
    if near is None:
        return Chart(title, roofs, hierarchy, operators)
    p1, p2, balance = turning_points(hierarchy, near)
    kernel = Mark("GPU memory bound", near, float(hierarchy.near.attainable(near)))
    return Chart(title, roofs, hierarchy, operators, kernel=kernel, p1=p1, p2=p2, balance=balance)


def _attention_panel(rates: Rates, points: tuple[OperatorPoint, ...]) -> Chart:
    operators = tuple(p for p in points if p.op_class == "attention")
    roofs = _used(_roofs(rates, "attention"), operators)
    hierarchy = gpu_over_link(roofs)
    context = rates.workload.mean_context_len
    intensity = attention_intensity(rates.model, rates.machine.precision, context)
    title = f"{rates.model.name} on {rates.machine.profile.name}: attention, context {context:,.0f}"
    return Chart(title, roofs, hierarchy, operators, p1=turning_points(hierarchy, intensity)[0])


def policy_ffn_case(rates: Rates, policy: Policy) -> Chart:
    """The expert FFN of one device between its turning points, at the policy's micro-batch and batch size."""
    sizes = sorted({32, 512, policy.batch_size})
    machine = rates.machine
    return ffn_case(machine.profile, rates.model, machine.precision, policy.micro_batch_size, sizes)


def _roofs(rates: Rates, op_class: str) -> tuple[Roof, ...]:
    machine = rates.machine
    return machine_roofs(machine.profile, machine.precision, op_class, machine.tensor_parallel_size)


def _used(roofs: tuple[Roof, ...], operators: tuple[OperatorPoint, ...]) -> tuple[Roof, ...]:
    levels = {"gpu", "cpu", "htod"} | {p.level for op in operators for p in op.levels}
    return tuple(r for r in roofs if r.level in levels)


def _without_efficiency(roof: Roof) -> Roof:
    """Processors have an efficiency per operator class; links have one."""
    if roof.level not in ("gpu", "cpu"):
        return roof
    return Roof(roof.label, roof.level, roof.is_compute, roof.peak)


def _longest_pass(rates: Rates, policy: Policy) -> tuple[tuple[OperatorPoint, ...], str, float]:
    rates = rates.for_chunk(policy.prefill_chunk_tokens)
    prediction = predict(rates, policy)
    longest = max(prediction.passes, key=lambda p: p.count * p.seconds)
    shape = next(s for s in generation_passes(rates.workload, policy.mixed_prefill) if s.name == longest.name)
    loads = [load for load in operator_loads(rates, policy, shape) if load.seconds > SMALLEST_SHARE * longest.seconds]
    points = tuple(_point(load, longest.seconds, _roofs(rates, load.op_class)) for load in loads)
    return points, longest.name, longest.seconds


def _point(load: Load, seconds: float, roofs: tuple[Roof, ...]) -> OperatorPoint:
    levels = {level: load.flops / moved for level, moved in load.moved.items() if moved > NO_BYTES}
    share, rate = load.seconds / seconds, load.flops / seconds
    return place_operator(load.label, load.processor, rate, levels, share, roofs, load.op_class)

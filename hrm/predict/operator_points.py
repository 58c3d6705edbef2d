"""Places every operator of a policy under the roofs of its machine, at the rate it runs in the longest pass."""

from dataclasses import dataclass

from hrm.predict.prediction import predict
from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape, generation_passes
from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.case_study import ffn_case, machine_roofs
from hrm.roofline.chart import Chart, OperatorPoint, Roof, place_operator
from hrm.roofline.linear import dense_operators, expert_operator
from hrm.spec.policy import Policy

SMALLEST_SHARE = 0.005
NO_BYTES = 1e3  # what rounding of the shares leaves over is no traffic


@dataclass(frozen=True)
class _Load:
    """Flops of one operator in a pass, bytes per level, and busy seconds of its processor."""

    label: str
    processor: str
    flops: float
    bytes_: dict[str, float]
    seconds: float


def policy_chart(rates: Rates, policy: Policy) -> Chart:
    """All operators of a policy in its longest pass: one point per memory level, at flops / pass seconds.

    An operator whose data crosses the link lies on the link's roof when the link is the bottleneck. Rates are those of
    the whole machine, so roofs of GPUs and their links are summed over devices. Operators below 0.5 % of the pass are
    left out.

    Raises:
        PolicyError: the policy does not fit. RooflineError: a point above its roof.
    """
    prediction = predict(rates, policy)
    longest = max(prediction.passes, key=lambda p: p.count * p.seconds)
    shape = next(s for s in generation_passes(rates.workload, policy.mixed_prefill) if s.name == longest.name)
    roofs = _all_devices(
        machine_roofs(rates.machine.profile, rates.machine.precision, "expert_ffn"), rates.machine.tensor_parallel_size
    )
    loads = [load for load in _loads(rates, policy, shape) if load.seconds > SMALLEST_SHARE * longest.seconds]
    points = tuple(_point(load, longest.seconds, roofs) for load in loads)
    title = f"{rates.model.name} on {rates.machine.profile.name}: {longest.name} pass of {longest.seconds:.2f} s"
    return Chart(title, roofs, operators=points)


def policy_ffn_case(rates: Rates, policy: Policy) -> Chart:
    """The expert FFN of one device between its turning points, at the policy's micro-batch and batch size."""
    sizes = sorted({32, 512, policy.batch_size})
    machine = rates.machine
    return ffn_case(machine.profile, rates.model, machine.precision, policy.micro_batch_size, sizes)


def _all_devices(roofs: tuple[Roof, ...], devices: int) -> tuple[Roof, ...]:
    """GPU roofs summed over devices. Only links keep achieved values: elsewhere each operator class has its own."""
    kept = []
    for roof in roofs:
        times = devices if roof.level in ("gpu", "htod") else 1
        achieved = roof.achieved * times if roof.achieved and roof.level == "htod" else None
        if roof.level != "gpu_to_gpu":
            kept.append(Roof(roof.label, roof.level, roof.is_compute, roof.peak * times, achieved))
    return tuple(kept)


def _point(load: _Load, seconds: float, roofs: tuple[Roof, ...]) -> OperatorPoint:
    levels = {level: load.flops / moved for level, moved in load.bytes_.items() if moved > NO_BYTES}
    return place_operator(load.label, load.processor, load.flops / seconds, levels, load.seconds / seconds, roofs)


def _loads(rates: Rates, policy: Policy, shape: PassShape) -> list[_Load]:
    experts = _expert_loads(rates, policy, shape)
    return [*experts, *_attention_loads(rates, policy, shape), _dense_load(rates, policy, shape)]


def _expert_loads(rates: Rates, policy: Policy, shape: PassShape) -> list[_Load]:
    decode = shape.decode_share * policy.batch_size
    prompt = shape.prefill_share * rates.workload.prompt_len * policy.batch_size
    on_gpu = policy.experts_on_gpu if decode else 1.0
    whole = expert_operator(rates.model, rates.machine.precision, decode + prompt)
    name = "experts" if rates.model.num_moe_layers else "FFN"
    moved = _expert_sweep_bytes(rates, policy, decode, prompt) + float(whole.activation_bytes)
    streamed = max(0.0, on_gpu - policy.weights_on_gpu) * rates.sizes.expert_bytes
    seconds = rates.prefill_seconds_per_token[1] * prompt
    if decode:
        seconds += decode / policy.ffn_batch_size * float(rates.expert_seconds(float(policy.ffn_batch_size)))
    levels = {"gpu": moved * on_gpu, "htod": streamed}
    loads = [_Load(name, "gpu", float(whole.flops) * on_gpu, levels, seconds * on_gpu)]
    if on_gpu < 1:
        loads.append(_host_experts(rates, f"{name} (CPU)", decode + prompt, 1 - on_gpu))
    return loads


def _expert_sweep_bytes(rates: Rates, policy: Policy, decode: float, prompt: float) -> float:
    """Weight bytes read from GPU memory: once per FFN batch of decode tokens and per prefill chunk."""
    read = prompt / rates.prefill_chunk_tokens * rates.sizes.expert_bytes
    if decode:
        size = float(policy.ffn_batch_size)
        op = expert_operator(rates.model, rates.machine.precision, size)
        read += decode / size * float(op.weight_bytes)
    return read


def _host_experts(rates: Rates, label: str, tokens: float, share: float) -> _Load:
    whole = expert_operator(rates.model, rates.machine.precision, tokens)
    seconds = float(rates.expert_compute_seconds("cpu", tokens, tokens)) * share
    return _Load(label, "cpu", float(whole.flops) * share, {"cpu": float(whole.bytes) * share}, seconds)


def _attention_loads(rates: Rates, policy: Policy, shape: PassShape) -> list[_Load]:
    work, decode = rates.workload, shape.decode_share * policy.batch_size
    parts = decode_attention(rates.model, rates.machine.precision, decode, work.mean_context_len)
    flops, moved = sum(float(p.flops) for p in parts), sum(float(p.bytes) for p in parts)
    kv = sum(float(p.kv_bytes) for p in parts)
    loads = []
    for level, share in (("gpu", policy.attention_on_gpu), ("cpu", 1 - policy.attention_on_gpu)):
        if share <= 0 or not decode:
            continue
        streamed = max(0.0, share - policy.kv_on_gpu) * kv if level == "gpu" else 0.0
        label = "attention" if share == 1 else f"attention ({level.upper()})"
        seconds = decode * share * rates.decode_attention_seconds[level]
        loads.append(_Load(label, level, flops * share, {level: moved * share, "htod": streamed}, seconds))
    if shape.prefill_share:
        loads.append(_prefill_load(rates, shape.prefill_share * policy.batch_size))
    return loads


def _prefill_load(rates: Rates, prompts: float) -> _Load:
    work = rates.workload
    ops = prefill_attention(rates.model, rates.machine.precision, prompts, work.prompt_len, work.prompt_len_sq)
    flops, moved = sum(float(p.flops) for p in ops), sum(float(p.bytes) for p in ops)
    return _Load("prefill attention", "gpu", flops, {"gpu": moved}, prompts * rates.prefill_attention_seconds)


def _dense_load(rates: Rates, policy: Policy, shape: PassShape) -> _Load:
    decode, prompts = shape.decode_share * policy.batch_size, shape.prefill_share * policy.batch_size
    prompt = prompts * rates.workload.prompt_len
    ops = dense_operators(rates.model, rates.machine.precision, decode + prompt, decode + prompts)
    sweeps = prompt / rates.prefill_chunk_tokens + (policy.num_micro_batches if decode else 0)
    moved = sum(float(op.activation_bytes) + sweeps * float(op.weight_bytes) for op in ops if op.name != "embedding")
    seconds = prompt * rates.prefill_seconds_per_token[0]
    if decode:
        size = policy.micro_batch_size * shape.decode_share
        seconds += policy.num_micro_batches * float(rates.dense_seconds(size, size))
    streamed = (1 - policy.dense_weights_on_gpu) * rates.sizes.dense_bytes
    return _Load("projections", "gpu", sum(float(op.flops) for op in ops), {"gpu": moved, "htod": streamed}, seconds)

"""Flops, bytes and busy time of every operator of a policy in one pass."""

from dataclasses import dataclass

from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape
from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import dense_operators, expert_operator
from hrm.schedule.registry import placement_of
from hrm.spec.policy import Policy


@dataclass(frozen=True)
class Load:
    """One operator in a pass: flops, bytes moved at each level, busy seconds of its processor.

    `moved` starts with the processor's own memory; `op_class` is "linear", "expert_ffn" or "attention".
    """

    label: str
    op_class: str
    processor: str
    flops: float
    moved: dict[str, float]
    seconds: float


def operator_loads(rates: Rates, policy: Policy, shape: PassShape) -> list[Load]:
    """Experts (dense model: the FFN), attention and everything else that multiplies by weights, in one pass.

    Bytes that the schedule moves besides operands (hidden states to the CPU, new K and V) are left out.
    """
    experts = _expert_loads(rates, policy, shape)
    return [*experts, *_attention_loads(rates, policy, shape), _dense_load(rates, policy, shape)]


def _expert_loads(rates: Rates, policy: Policy, shape: PassShape) -> list[Load]:
    decode = shape.decode_share * policy.batch_size
    prompt = shape.prefill_share * rates.workload.prompt_len * policy.batch_size
    on_gpu = policy.expert_work_on_gpu if decode else 1.0
    whole = expert_operator(rates.model, rates.machine.precision, decode + prompt)
    name = "experts" if rates.model.num_moe_layers else "FFN"
    moved = _expert_sweep_bytes(rates, policy, decode, prompt) + float(whole.activation_bytes)
    streamed = _streamed_share(rates, policy, shape, on_gpu) * rates.sizes.expert_bytes
    seconds = rates.prefill_seconds_per_token[1] * prompt
    if decode:
        seconds += decode / policy.ffn_batch_size * float(rates.expert_seconds(float(policy.ffn_batch_size)))
    levels = {"gpu": moved * on_gpu, "htod": streamed, "disk": policy.weights_on_disk * rates.sizes.expert_bytes}
    loads = [Load(name, "expert_ffn", "gpu", float(whole.flops) * on_gpu, levels, seconds * on_gpu)]
    if on_gpu < 1:
        loads.append(_host_experts(rates, f"{name} (CPU)", decode + prompt, 1 - on_gpu))
    return loads


def _streamed_share(rates: Rates, policy: Policy, shape: PassShape, on_gpu: float) -> float:
    """Share of the expert weights that crosses the link: computed on the GPU, not resident, and fetched at all."""
    missing = max(0.0, on_gpu - policy.weights_on_gpu)
    if placement_of(policy).overlap != "on_demand" or not shape.decode_share:
        return missing
    tokens = (shape.decode_share + shape.prefill_share * rates.workload.prompt_len) * policy.micro_batch_size
    return missing * float(rates.sizes.touched_share(tokens))


def _expert_sweep_bytes(rates: Rates, policy: Policy, decode: float, prompt: float) -> float:
    """Weight bytes read from GPU memory: once per FFN batch of decode tokens and per prefill chunk."""
    read = prompt / rates.prefill_chunk_tokens * rates.sizes.expert_bytes
    if decode:
        size = float(policy.ffn_batch_size)
        op = expert_operator(rates.model, rates.machine.precision, size)
        read += decode / size * float(op.weight_bytes)
    return read


def _host_experts(rates: Rates, label: str, tokens: float, share: float) -> Load:
    whole = expert_operator(rates.model, rates.machine.precision, tokens)
    compute = float(rates.expert_compute_seconds("cpu", tokens, tokens))
    memory = float(rates.expert_weight_seconds("cpu", tokens)) + float(rates.expert_activation_seconds("cpu", tokens))
    seconds = max(compute, memory) * share
    return Load(label, "expert_ffn", "cpu", float(whole.flops) * share, {"cpu": float(whole.bytes) * share}, seconds)


def _attention_loads(rates: Rates, policy: Policy, shape: PassShape) -> list[Load]:
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
        loads.append(Load(label, "attention", level, flops * share, {level: moved * share, "htod": streamed}, seconds))
    if shape.prefill_share:
        loads.append(_prefill_load(rates, shape.prefill_share * policy.batch_size))
    return loads


def _prefill_load(rates: Rates, prompts: float) -> Load:
    work = rates.workload
    ops = prefill_attention(rates.model, rates.machine.precision, prompts, work.prompt_len, work.prompt_len_sq)
    flops, moved = sum(float(p.flops) for p in ops), sum(float(p.bytes) for p in ops)
    return Load(
        "prefill attention", "attention", "gpu", flops, {"gpu": moved}, prompts * rates.prefill_attention_seconds
    )


def _dense_load(rates: Rates, policy: Policy, shape: PassShape) -> Load:
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
    return Load(
        "projections", "linear", "gpu", sum(float(op.flops) for op in ops), {"gpu": moved, "htod": streamed}, seconds
    )

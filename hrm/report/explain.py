"""The answer in words: what the policy does, what binds it, and what to upgrade."""

from hrm.predict.gap import Gap
from hrm.report.search_report import binding_memory
from hrm.search.search import Candidate, SearchResult
from hrm.search.sensitivity import LABELS, Sensitivity
from hrm.spec.policy import Policy

BINDING_WORDS = {
    "gpu": "the GPU computes all the time",
    "cpu": "the CPU computes all the time",
    "htod": "the host-to-device link never rests",
    "dtoh": "the device-to-host link never rests",
    "disk": "the disk never rests",
    "gpu_to_gpu": "the GPU-GPU link never rests",
    "gpu_to_gpu_and_htod": "GPU-GPU traffic and host-to-device copies share a PCIe link that never rests",
    "gpu_to_gpu_and_dtoh": "GPU-GPU traffic and device-to-host copies share a PCIe link that never rests",
    "cpu_memory_bandwidth": "CPU memory bandwidth is used up by CPU work and copies together",
    "cpu_then_gpu": "CPU attention and GPU experts take turns",
    "gpu_then_cpu": "GPU attention and CPU experts take turns",
    "gpu_and_cpu_in_turn": "GPU and CPU take turns",
    "gpu_and_htod_in_turn": "experts are fetched on demand while the GPU waits",
    "prefetch_ring": "the page pool is too small to prefetch through the attention phase",
}
_ATTENTION_WORDS = {
    "cpu": "decode attention on the CPU, where the KV cache lies",
    "resident": "decode attention on the GPU, with the KV cache resident there",
    "streamed": "decode attention on the GPU, KV cache streamed in per micro-batch",
    "hybrid": "decode attention on both: the GPU for the {kv:.0%} of the KV cache it holds, the CPU for the rest",
    "split": "{attention:.0%} of decode attention on the GPU ({kv:.0%} of KV resident), the rest on the CPU",
}


def describe_policy(policy: Policy) -> str:
    """One sentence on where everything runs."""
    attention = _ATTENTION_WORDS[policy.attention_place].format(kv=policy.kv_on_gpu, attention=policy.attention_on_gpu)
    experts = (
        "experts on the GPU" if policy.experts_on_gpu == 1 else f"{policy.experts_on_gpu:.1%} of experts on the GPU"
    )
    if policy.caches_whole_experts:
        experts = f"experts on the GPU, {policy.weights_on_gpu:.0%} of them in a cache ({policy.expert_cache})"
        experts += f", {1 - policy.experts_on_gpu:.0%} of missed ones on the CPU" if policy.experts_on_gpu < 1 else ""
    batching = "over the whole batch" if policy.ffn_batching == "batch" else "per micro-batch"
    prefill = "mixed into every decode pass" if policy.mixed_prefill else "of the whole batch first, then decode"
    return f"{attention}; {experts}, {batching}; prefill {prefill}."


def describe_gap(gap: Gap) -> str:
    """One sentence: where the time of a simulated pass beyond its busiest queue goes."""
    over = gap.makespan / gap.bound - 1 if gap.bound else 0.0
    parts = {"bubbles": gap.bubbles, "latency": gap.latency, "contention": gap.contention}
    shares = ", ".join(f"{name} {seconds / gap.bound:+.1%}" for name, seconds in parts.items())
    return f"A pass takes {over:.1%} longer than its busiest queue ({gap.binding}): {shares}."


def describe_binding(candidate: Candidate) -> str:
    """One sentence on the binding resources and memories."""
    prediction = candidate.prediction
    longest = max(prediction.passes, key=lambda p: p.count * p.seconds)
    reasons = [BINDING_WORDS[name] for name in longest.binding]
    full = {"gpu_memory": "GPU memory is full", "cpu_memory": "CPU memory is full and limits the batch"}
    reasons += [full[name] for name in binding_memory(prediction)]
    return f"{longest.name} passes of {longest.seconds:.3g} s: " + "; ".join(reasons) + "."


def describe_upgrade(rows: tuple[Sensitivity, ...]) -> str:
    """One sentence on the resource whose increase gains the most."""
    best = rows[0]
    if best.relative_gain < 1e-3:
        return "No single resource gains 0.1 % or more from 10 % more of it."
    return (
        f"{best.factor - 1:.0%} more {LABELS[best.resource]} would gain the most: "
        f"{best.relative_gain:+.1%}, to {best.generation_throughput:,.1f} tokens/s."
    )


def describe_assumptions(result: SearchResult) -> str:
    """One sentence on what the numbers rest on."""
    parts = result.rates.machine.profile.uncalibrated_parts
    compute = [p for p in parts if not p.startswith("links.")]
    words = "Times are roofs combined by the schedule's overlap; pipeline fill, drain and kernel launches are left out."
    if compute:
        words += f" {result.rates.machine.profile.name} states no measured efficiency for {len(compute)} of 12 "
        words += "processor roofs: there the datasheet peak is taken, so read the result as an upper bound."
    if result.rates.machine.profile.cpu.memory_bandwidth.kind != "measured":
        words += " CPU memory bandwidth, which CPU work and copies share, is taken at its stated peak."
    if result.rates.model.encoder_layers:
        words += " The encoder's own work is left out."
    return words

"""Small random machines, models and workloads, for property tests of the cost model and the search."""

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from hrm.predict.rates import Rates
from hrm.roofline.sizes import Sizes
from hrm.schedule.registry import schedule_names
from hrm.search.branch import largest_batches
from hrm.search.pool import search_pool
from hrm.search.search import make_rates
from hrm.spec.hardware import (
    Disk,
    Efficiency,
    HardwareProfile,
    Level,
    Link,
    Number,
    OperatorEfficiency,
    PeakFlops,
    Processor,
    Source,
    TokenStep,
)
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec
from hrm.spec.precision import Precision
from hrm.spec.workload import Workload

LARGEST_BATCH = 25  # every (placement, mu, k) of a search stays countable


@dataclass(frozen=True)
class Instance:
    """One search problem; small enough to enumerate."""

    rates: Rates
    schedule: str

    @property
    def placements(self):
        return search_pool(self.rates, self.schedule)


def number(value: float) -> Number:
    return Number(value=value, text=f"{value:g}", kind="fitted", source="random", date="2026-01")


def peak(value: float) -> PeakFlops:
    return PeakFlops(value=value, text=f"{value:g}", kind="fitted", source="random", date="2026-01")


def level(peaks: dict[str, float], memory: float, bandwidth: float) -> Level:
    processor = Processor(name="random", peak_flops={dtype: peak(value) for dtype, value in peaks.items()}, cores=4)
    return Level(
        processor=processor,
        memory_capacity=number(memory),
        memory_usable=number(memory),
        memory_bandwidth=number(bandwidth),
    )


def link(bandwidth: float, latency: float) -> Link:
    return Link(technology="random", bandwidth=number(bandwidth), latency=number(latency))


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(0, 1).map(lambda u: low * (high / low) ** u)


@st.composite
def attentions(draw: st.DrawFn) -> AttentionSpec:
    """Grouped-query (every group size, with or without a window) or latent."""
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    heads, dim = kv_heads * draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([16, 32]))
    if draw(st.booleans()):
        return AttentionSpec(heads, kv_heads, dim, dim, window=draw(st.sampled_from([None, None, 24])))
    rope, rank = draw(st.sampled_from([8, 16])), draw(st.sampled_from([16, 64]))
    return AttentionSpec(
        heads, heads, dim + rope, dim, kv_lora_rank=rank, q_lora_rank=draw(st.sampled_from([None, 32])),
        qk_rope_head_dim=rope, qk_nope_head_dim=dim,
    )  # fmt: skip


@st.composite
def ffns(draw: st.DrawFn) -> FfnSpec:
    """Dense, or one to eight experts of which any number is selected, some with a shared expert."""
    width, gated = draw(st.sampled_from([64, 256, 512])), draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        return FfnSpec(0, 0, width, 0, gated)
    experts = draw(st.integers(1, 8))
    return FfnSpec(experts, draw(st.integers(1, experts)), width, draw(st.sampled_from([0, 0, 64])), gated)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """One to three layers, alike or of two kinds; MoE and dense."""
    hidden = draw(st.sampled_from([64, 128]))
    first, second, attention = draw(ffns()), draw(ffns()), draw(attentions())
    kinds = [first] + [draw(st.sampled_from([first, second])) for _ in range(draw(st.integers(0, 2)))]
    layers = tuple(LayerSpec(attention, ffn, 2 * hidden) for ffn in kinds)
    return ModelSpec("random", "random", hidden, draw(st.sampled_from([32, 512])), layers, draw(st.booleans()), "bf16",
                     None, None, hidden, final_norm_parameters=hidden)  # fmt: skip


@st.composite
def efficiencies(draw: st.DrawFn) -> Efficiency:
    """None, or shares of the peaks that rise in steps with the number of tokens."""
    if draw(st.booleans()):
        return Efficiency()

    def stated() -> OperatorEfficiency:
        shares = sorted(draw(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4)))
        starts = [1, *sorted(draw(st.sets(st.integers(2, 40), min_size=len(shares) - 1, max_size=len(shares) - 1)))]
        steps = [TokenStep(from_tokens=s, efficiency=number(e)) for s, e in zip(starts, shares, strict=True)]
        return OperatorEfficiency(compute_by_tokens=tuple(steps), memory=number(draw(st.floats(0.2, 1.0))))

    return Efficiency(
        gpu={"linear": stated(), "expert_ffn": stated()},
        cpu={"attention": stated(), "expert_ffn": stated()},
        links={"htod": number(draw(st.floats(0.3, 1.0)))},
    )


@st.composite
def profiles(draw: st.DrawFn, sizes: Sizes, sequence_bytes: float) -> HardwareProfile:
    """Machines from far too small for the model to large enough for it and a dozen sequences."""
    devices = draw(st.sampled_from([1, 1, 2]))
    weights = sizes.expert_bytes + sizes.dense_bytes + sizes.embedding_bytes
    layer = sizes.expert_bytes / sizes.num_expert_layers
    work = 256 * (sizes.projection_workspace_bytes + sizes.expert_workspace_bytes + 8 * sizes.hidden_bytes)
    gpu = work * draw(st.floats(0.9, 2.5)) + layer * draw(st.floats(0.5, 5)) + sequence_bytes * draw(st.floats(0, 12))
    gpu += draw(st.sampled_from([0.0, 0.0, 1.0])) * weights
    cpu = weights * draw(st.floats(0.5, 1.5)) + sequence_bytes * draw(st.floats(0, 20))
    dram, gpu_flops = draw(log_uniform(5e8, 2e10)), draw(log_uniform(1e11, 5e12))
    htod = draw(log_uniform(1e8, 1e10))
    links = {"htod": link(htod, draw(log_uniform(1e-7, 1e-4))), "dtoh": link(htod, 1e-6)}
    disk = None
    if draw(st.booleans()):
        links |= {name: link(draw(log_uniform(1e7, 1e9)), 1e-4) for name in ("disk_read", "disk_write")}
        capacity = number(weights * draw(st.floats(0.1, 2)))
        disk = Disk(memory_capacity=capacity, memory_usable=capacity)
    if devices > 1:
        links["gpu_to_gpu"] = link(draw(log_uniform(1e8, 1e11)), 1e-6)
    return HardwareProfile(
        name="random", title="random", sources={"random": Source(title="random", date="2026-01")}, device_count=devices,
        gpu=level({"bf16": gpu_flops}, gpu / devices, draw(log_uniform(1e10, 1e11))),
        cpu=level({"fp32": draw(log_uniform(1e9, 2e11))}, cpu, dram),
        disk=disk, links=links, efficiency=draw(efficiencies()),
    )  # fmt: skip


def workload(prompt_len: float, gen_len: int) -> Workload:
    return Workload("random", prompt_len, int(prompt_len) + 1, gen_len, False, 1.5 * prompt_len**2)


@st.composite
def instances(draw: st.DrawFn, largest_batch: int = LARGEST_BATCH, schedule: str | None = None) -> Instance:
    """A search whose largest batch is at most `largest_batch`: prompts are doubled until it is.

    With a window KV stops growing with the prompt, so the memories are halved instead.
    """
    model, gen_len = draw(models()), draw(st.integers(1, 64))
    precision = Precision("bf16", draw(st.sampled_from(["bf16", "int8", "mxfp4"])), "bf16", "bf16")
    prompt = draw(st.floats(4, 400))
    sizes = Sizes(model, precision)
    profile = draw(profiles(sizes, sizes.kv_bytes_per_sequence(prompt + gen_len)))
    chosen = schedule or draw(st.sampled_from([*schedule_names(), "auto"]))
    instance = Instance(make_rates(profile, model, workload(prompt, gen_len), precision), chosen)
    while largest_batches(instance.rates, instance.placements).max() > largest_batch:
        prompt *= 2
        shrunk = profile.with_scaled("cpu_memory", 0.9).with_scaled("gpu_memory", 0.9)
        profile = shrunk if model.layers[0].attention.window else profile
        instance = replace(instance, rates=make_rates(profile, model, workload(prompt, gen_len), precision))
    return instance

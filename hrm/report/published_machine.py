"""The published machines: datasheets, and the component measurements published beside the results."""

from functools import cache

from hrm.report.published_rows import published_data, system_facts
from hrm.spec.hardware import Efficiency, HardwareProfile, Number, OperatorEfficiency, Source, TokenStep, load_profile

SOURCE = "published-systems"


@cache
def published_machine(
    setting: str, system: str | None = None, fused_kernel_flops_per_s: float | None = None
) -> HardwareProfile:
    """A shipped profile at sustained clocks, with the fused kernel's tiles and a system's own memory traffic.

    Without a system: the machine as a runtime would find it whose grouped expert products pad nothing. A rate for the
    fused kernel, flop/s, takes the place of the tensor peak at the base clock (a what-if, see `published.diagnosis`).
    """
    profile, facts = load_profile(published_data()["machines"][setting]["profile"]), system_facts()
    clocks, own = facts["machines"][setting], facts["systems"][system] if system else {}
    clock = clocks["base_clock_mhz"] / clocks["boost_clock_mhz"]
    kernel = clock
    if fused_kernel_flops_per_s is not None and own.get("fused_kernel"):
        kernel = fused_kernel_flops_per_s / profile.peak_flops_per_s("gpu", "fp16")
    rows = facts["expert_tile_rows"] if own.get("fused_kernel") else 1
    traffic = 1 / own.get("gpu_attention_traffic", 1.0)
    gpu = {
        "linear": OperatorEfficiency(compute=_share(clock)),
        "attention": OperatorEfficiency(compute=_share(clock), memory=_share(traffic)),
        "expert_ffn": _experts(kernel, rows, facts["expert_memory_share"]),
    }
    reads = facts["cpu_attention_bytes_per_s"] / profile.cpu.memory_bandwidth.value
    if "cpu_attention_traffic" in own:
        reads = 1 / own["cpu_attention_traffic"]
    cpu = {**profile.efficiency.cpu, "attention": OperatorEfficiency(memory=_share(reads))}
    source = {SOURCE: Source(title="hrm/data/published/systems.yaml", date="2026-11")}
    efficiency = Efficiency(gpu=gpu, cpu=cpu, links=profile.efficiency.links)
    return profile.model_copy(update={"efficiency": efficiency, "sources": {**profile.sources, **source}})


def _experts(clock: float, tile_rows: int, memory: float) -> OperatorEfficiency:
    """Fewer rows of an expert than a tile has are padded to it: r rows use r / tile_rows of the flops done.

    Beyond one tile the padding of the last one is left out (at most half).
    """
    if tile_rows == 1:
        return OperatorEfficiency(compute=_share(clock), memory=_share(memory))
    steps = tuple(
        TokenStep(from_tokens=rows, efficiency=_share(clock * rows / tile_rows)) for rows in range(1, tile_rows + 1)
    )
    return OperatorEfficiency(compute_by_tokens=steps, memory=_share(memory))


def _share(value: float) -> Number:
    return Number(value=value, text=f"{value:.4g}", kind="datasheet", source=SOURCE, date="2026-11")

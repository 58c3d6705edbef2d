"""The published machines: datasheets, and the component measurements published beside the results."""

from functools import cache

from hrm.report.published_rows import published_data, system_facts
from hrm.spec.hardware import Efficiency, HardwareProfile, Number, OperatorEfficiency, Source, TokenStep, load_profile

SOURCE = "published-systems"


@cache
def published_machine(setting: str, system: str | None = None) -> HardwareProfile:
    """A shipped profile with sustained clocks, the fused kernel's tiles, and what a system's kernels do to memory
    traffic.

    Without a system: the machine as the toolkit's own runtime would find it, with grouped expert products that pad
    nothing.
    """
    profile, facts = load_profile(published_data()["machines"][setting]["profile"]), system_facts()
    clocks = facts["machines"][setting]
    clock = clocks["base_clock_mhz"] / clocks["boost_clock_mhz"]
    own = facts["systems"][system] if system else {}
    dense = OperatorEfficiency(compute=_share(clock))
    if profile.efficiency.gpu.get("linear"):
        dense = profile.efficiency.gpu["linear"]
    attention = OperatorEfficiency(compute=_share(clock), memory=_share(1 / own.get("gpu_attention_traffic", 1.0)))
    rows = facts["expert_tile_rows"] if system in ("MoEL", "MoEL(p)", "FlexGen", "FlexGen(c)") else 1
    gpu = {"linear": dense, "attention": attention, "expert_ffn": _experts(clock, rows, facts["expert_memory_share"])}
    dram = profile.cpu.memory_bandwidth.value
    reads = facts["cpu_attention_bytes_per_s"] / dram
    if "cpu_attention_traffic" in own:
        reads = 1 / own["cpu_attention_traffic"]
    cpu = {**profile.efficiency.cpu, "attention": OperatorEfficiency(memory=_share(reads))}
    source = {SOURCE: Source(title="hrm/data/published/systems.yaml", date="2026-11")}
    efficiency = Efficiency(gpu=gpu, cpu=cpu, links=profile.efficiency.links)
    return profile.model_copy(update={"efficiency": efficiency, "sources": {**profile.sources, **source}})


def _experts(clock: float, tile_rows: int, memory: float) -> OperatorEfficiency:
    """Rows of an expert are padded to whole tiles, so r rows use r / (tiles x tile_rows) of the flops done."""
    if tile_rows == 1:
        return OperatorEfficiency(compute=_share(clock), memory=_share(memory))
    steps = tuple(
        TokenStep(from_tokens=rows, efficiency=_share(clock * rows / tile_rows)) for rows in range(1, tile_rows + 1)
    )
    return OperatorEfficiency(compute_by_tokens=steps, memory=_share(memory))


def _share(value: float) -> Number:
    return Number(value=value, text=f"{value:.4g}", kind="fitted", source=SOURCE, date="2026-11")

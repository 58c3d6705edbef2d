"""Says why nothing fits: which memory, by how many bytes, and the nearest change that would make it fit."""

from dataclasses import replace

import numpy as np

from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.schedule.placement import Placement
from hrm.search.batch_lp import solve_nodes
from hrm.search.node_programs import Col
from hrm.search.relaxation import node_programs
from hrm.spec.precision import Precision

_MEMORIES = {Col.GPU_EXCESS: "GPU", Col.CPU_EXCESS: "CPU", Col.DISK_EXCESS: "disk"}
_SMALLER = ("fp8", "int8", "int4")


def explain_infeasible(rates: Rates, placements: tuple[Placement, ...]) -> str:
    """One paragraph for a search in which not even the smallest batch fits."""
    name, model = rates.machine.profile.name, rates.model.name
    lacking = {memory: _least_excess(rates, placements, memory) for memory in (Col.GPU_EXCESS, Col.CPU_EXCESS)}
    fixes = [
        f"{bytes_ / 2**30:.2f} GiB more usable {_MEMORIES[memory]} memory"
        for memory, bytes_ in sorted(lacking.items(), key=lambda item: item[1])
        if np.isfinite(bytes_)
    ]
    smaller = next((d for d in _SMALLER if _fits(rates, placements, d)), None)
    if smaller:
        fixes.append(f"weights in {smaller} (--dtype {smaller})")
    worst = min(lacking, key=lambda memory: lacking[memory])
    if np.isfinite(lacking[worst]):
        row = "gpu_memory" if worst == Col.GPU_EXCESS else "cpu_memory"
        what = f"constraint {row} is exceeded by {lacking[worst]:,.0f} bytes ({lacking[worst] / 2**30:.2f} GiB)"
    else:
        what = "constraints gpu_memory and cpu_memory are both exceeded"
    weights = rates.sizes.expert_bytes + rates.sizes.dense_bytes + rates.sizes.embedding_bytes
    need = f"its weights are {weights / 2**30:.1f} GiB in {rates.machine.precision.expert_weights}"
    help_ = "; or ".join(fixes) or "a disk in the profile, a smaller model, or a machine with more memory"
    return (
        f"{model} does not fit on {name} even with the smallest batch: {what}; {need}. What would make it fit: {help_}"
    )


def _least_excess(rates: Rates, placements: tuple[Placement, ...], memory: int) -> float:
    """Fewest bytes by which one memory must grow for the smallest batch to fit, others as they are; inf if never."""
    machine = rates.machine
    capacity = machine.gpu_memory_bytes if memory == Col.GPU_EXCESS else machine.cpu_memory_bytes
    best = np.inf
    for placement in placements:
        program = node_programs(rates, placement, _smallest(placement))
        relaxed = program.rows.copy()
        cost = np.zeros_like(program.cost)
        for row in np.flatnonzero(relaxed[0, :, memory]):
            relaxed[0, row, Col.PASS + 1] = relaxed[0, row, memory]  # a free variable stands in for the excess
            relaxed[0, row, memory] = 0.0
        time_rows = [i for i, n in enumerate(program.row_names) if n.split("_")[0] in ("prefill", "decode", "mixed")]
        relaxed[0, time_rows, :] = 0.0
        cost[0, Col.PASS + 1] = 1.0
        solved = solve_nodes([replace(program, rows=relaxed)], [cost])[0]
        best = min(best, float(solved.value[0]))
    return best * capacity


def _fits(rates: Rates, placements: tuple[Placement, ...], dtype: str) -> bool:
    old = rates.machine.precision
    smaller = Precision(dtype, dtype, old.kv_cache, old.activations)
    trial = replace(rates, machine=replace(rates.machine, precision=smaller))
    programs = [node_programs(trial, p, _smallest(p)) for p in placements]
    return any(np.isfinite(s.value[0]) for s in solve_nodes(programs))


def _smallest(placement: Placement) -> Nodes:
    """The smallest batch that the placement can run, in micro-batches of one."""
    one = np.ones(1)
    return Nodes(one, one, placement.min_micro_batches * one, placement.min_micro_batches * one)

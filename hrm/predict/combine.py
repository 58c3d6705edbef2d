"""How a schedule combines busy times into the time of a pass: rows `form <= pass seconds`."""

from itertools import product

from hrm.predict.forms import Form, form
from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape
from hrm.predict.work import PassWork
from hrm.schedule.placement import Placement

Row = tuple[str, Form]
"""(what binds, form in seconds): the pass takes at least this long."""


def pass_rows(rates: Rates, placement: Placement, shape: PassShape, work: PassWork, nodes: Nodes) -> list[Row]:
    """What a pass takes at least; the maximum is the closed-form pass time of the schedule.

    On demand it is an estimate instead: copies and compute in turn, though pages overlap within a layer.
    """
    rows: list[Row] = [("htod", work.htod), ("dtoh", work.dtoh), ("cpu_memory_bandwidth", work.dram)]
    if rates.machine.profile.disk:
        rows.append(("disk", work.disk))
    if not shape.decode_share:
        rows.append(("gpu", work.gpu_floor))
    if rates.machine.tensor_parallel_size > 1:
        rows += _link_rows(rates, work)
    pipelined = not shape.decode_share and placement.overlap == "phases"
    predicted = placement.expert_cache == "predictive"  # rightly, without better knowledge: copies overlap compute
    combine = {"full": _full, "phases": _phases, "cpu_serial": _cpu_serial, "on_demand": _on_demand}
    rows += combine["full" if pipelined or predicted else placement.overlap](work)
    if placement.pool_layers is None and not pipelined:
        rows += _prefetch(rates, work, nodes)
    return rows


def _link_rows(rates: Rates, work: PassWork) -> list[Row]:
    """GPU-GPU traffic over PCIe shares its lanes with the host links; NVLink and the like are wires of their own."""
    if rates.machine.profile.link("gpu_to_gpu").technology.startswith("PCIe"):
        return [("gpu_to_gpu_and_htod", work.link + work.htod), ("gpu_to_gpu_and_dtoh", work.link + work.dtoh)]
    return [("gpu_to_gpu", work.link)]


def _full(work: PassWork) -> list[Row]:
    gpu = [("gpu", work.gpu_dense + experts) for experts in work.gpu_experts]
    return gpu + [("cpu", work.cpu_attention + experts) for experts in work.cpu_experts]


def _phases(work: PassWork) -> list[Row]:
    """max(GPU, CPU) in the attention phase plus max(GPU, CPU) in the expert phase, written out as four sums."""
    rows: list[Row] = []
    for gpu, cpu in product(work.gpu_experts, work.cpu_experts):
        rows += [("gpu", work.gpu_dense + gpu), ("cpu", work.cpu_attention + cpu)]
        rows += [("cpu_then_gpu", work.cpu_attention + gpu), ("gpu_then_cpu", work.gpu_dense + cpu)]
    return rows


def _cpu_serial(work: PassWork) -> list[Row]:
    return [
        ("gpu_and_cpu_in_turn", work.gpu_dense + gpu + work.cpu_attention + cpu)
        for gpu, cpu in product(work.gpu_experts, work.cpu_experts)
    ]


def _on_demand(work: PassWork) -> list[Row]:
    """Experts are known after routing, so their copies and CPU share wait for, and are waited for by, the GPU."""
    rows: list[Row] = []
    for gpu in work.gpu_experts:
        rows.append(("gpu_and_htod_in_turn", work.gpu_dense + gpu + work.htod + work.disk + work.cpu_attention))
        rows += [("gpu_and_cpu_in_turn", work.gpu_dense + work.cpu_attention + cpu) for cpu in work.cpu_experts]
    return rows


def _prefetch(rates: Rates, work: PassWork, nodes: Nodes) -> list[Row]:
    """A ring of S bytes keeps the link busy through an attention phase only for as long as it has free slots.

    Per expert layer the link then idles for (attention phase - S / link bandwidth), so over a pass
    htod + attention - layers * S / bandwidth bounds the time from below.
    """
    covered = rates.sizes.num_expert_layers / rates.machine.link_bytes_per_s("htod")
    ring = form(len(nodes), POOL=-covered)
    return [
        ("prefetch_ring", work.htod + work.cpu_attention + ring),
        ("prefetch_ring", work.htod + work.gpu_dense + ring),
    ]

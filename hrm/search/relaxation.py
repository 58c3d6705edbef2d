"""The linear program of a node: the policy's continuous choices at a range, or one value, of (mu, N)."""

import numpy as np
from numpy.typing import NDArray

from hrm.predict.combine import pass_rows
from hrm.predict.forms import Form, Term
from hrm.predict.memory import cpu_parts, disk_parts, gpu_parts, pool_need
from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.predict.shapes import generation_passes
from hrm.predict.work import pass_work
from hrm.schedule.expert_slots import largest_top_k
from hrm.schedule.placement import Placement
from hrm.search.node_programs import MAX_PASSES, NUM_COLS, Col, NodePrograms

_TERM_COLUMN = {
    Term.ONE: Col.T,
    Term.N: Col.UNIT,
    Term.N_ATTENTION: Col.ATTENTION,
    Term.N_KV: Col.KV,
    Term.WEIGHTS: Col.WEIGHTS,
    Term.EXPERTS: Col.EXPERTS,
    Term.N_EXPERTS: Col.EXPERT_SHARE,
    Term.DENSE: Col.DENSE,
    Term.DISK: Col.DISK,
    Term.POOL: Col.POOL,
}
_COLUMNS = [int(_TERM_COLUMN[term]) for term in Term]
_PER_SEQUENCE = np.isin(list(Term), (Term.N, Term.N_ATTENTION, Term.N_KV, Term.N_EXPERTS))


def node_programs(rates: Rates, placement: Placement, nodes: Nodes) -> NodePrograms:
    """The programs of `nodes` under one placement; bounds on every policy in their ranges, exact at single values."""
    rates = rates.for_chunk(placement.prefill_chunk_tokens)
    builder = _Rows(nodes, rates.machine.gpu_memory_bytes)
    cost = np.zeros((len(nodes), NUM_COLS))
    scales = np.ones((len(nodes), MAX_PASSES))
    for i, shape in enumerate(generation_passes(rates.workload, placement.mixed_prefill)):
        work = pass_work(rates, placement, shape, nodes)
        named = pass_rows(rates, placement, shape, work, nodes)
        scales[:, i] = _time_scale([f for _, f in named], nodes)
        cost[:, Col.PASS + i] = shape.count * scales[:, i] / (nodes.n_hi * rates.workload.gen_len)
        for name, seconds in named:
            builder.add(f"{shape.name}_{name}", seconds, scales[:, i], {Col.PASS + i: -1.0})
    _add_memory(builder, rates, placement, nodes)
    _add_ratios(builder, rates, placement, nodes)
    lower, upper = _bounds(rates, placement, nodes)
    return NodePrograms(
        placement, nodes, tuple(builder.names), np.stack(builder.rows, axis=1), cost, lower, upper, scales,
        rates.machine.gpu_memory_bytes,
    )  # fmt: skip


class _Rows:
    """Collects homogeneous rows over the node variables."""

    def __init__(self, nodes: Nodes, pool_scale: float) -> None:
        self.nodes = nodes
        self.factors = np.where(_PER_SEQUENCE, nodes.n_hi[:, None], 1.0)  # [nodes, NUM_TERMS]
        self.factors[:, Term.POOL] = pool_scale
        self.names: list[str] = []
        self.rows: list[NDArray[np.float64]] = []

    def add(self, name: str, form: Form, scale: NDArray[np.float64] | float, extra: dict[int, float]) -> None:
        """form / scale + extra <= 0."""
        row = np.zeros((len(self.nodes), NUM_COLS))
        row[:, _COLUMNS] = form * self.factors / np.reshape(scale, (-1, 1))
        for column, value in extra.items():
            row[:, column] += value
        self.names.append(name)
        self.rows.append(row)

    def add_plain(self, name: str, **coefficients: "float | NDArray[np.float64]") -> None:
        """A row given directly by column names."""
        row = np.zeros((len(self.nodes), NUM_COLS))
        for column, value in coefficients.items():
            row[:, Col[column]] = value
        self.names.append(name)
        self.rows.append(row)


def _time_scale(forms: list[Form], nodes: Nodes) -> NDArray[np.float64]:
    """Seconds by which a pass's rows are divided, so that programs of fast and slow machines look alike."""
    largest = np.zeros(len(nodes))
    for seconds in forms:
        largest = np.maximum(largest, np.abs(seconds[:, Term.ONE]) + np.abs(seconds[:, Term.N]) * nodes.n_hi)
    return largest


def _add_memory(builder: _Rows, rates: Rates, placement: Placement, nodes: Nodes) -> None:
    machine = rates.machine
    for phase, parts in gpu_parts(rates, placement, nodes).items():
        builder.add(f"gpu_memory_{phase}", _total(parts), machine.gpu_memory_bytes, {Col.T: -1.0, Col.GPU_EXCESS: -1.0})
    cpu = _total(cpu_parts(rates, placement, nodes))
    builder.add("cpu_memory", cpu, machine.cpu_memory_bytes, {Col.T: -1.0, Col.CPU_EXCESS: -1.0})
    if machine.disk_bytes:
        disk = _total(disk_parts(rates, nodes))
        builder.add("disk_capacity", disk, machine.disk_bytes, {Col.T: -1.0, Col.DISK_EXCESS: -1.0})
    pool = pool_need(rates, placement, nodes)
    builder.add("page_pool", pool, machine.gpu_memory_bytes, {Col.POOL: -1.0})


def _total(parts: dict[str, Form]) -> Form:
    total: Form = np.sum(np.stack(list(parts.values())), axis=0)
    return total


def _add_ratios(builder: _Rows, rates: Rates, placement: Placement, nodes: Nodes) -> None:
    builder.add_plain("kv_within_attention", KV=1.0, ATTENTION=-1.0)
    if placement.attention == "hybrid":
        builder.add_plain("attention_only_where_kv_is", ATTENTION=1.0, KV=-1.0)
    builder.add_plain("resident_experts_run_on_gpu", WEIGHTS=1.0, EXPERTS=-1.0)
    builder.add_plain("dense_at_most_all", DENSE=1.0, T=-1.0)
    builder.add_plain("gpu_and_disk_at_most_all", WEIGHTS=1.0, DISK=1.0, T=-1.0)
    widest = nodes.n_hi / nodes.n_lo
    builder.add_plain("experts_at_most_all", EXPERTS=1.0, T=-1.0)
    builder.add_plain("share_from_below", EXPERT_SHARE=1.0, EXPERTS=-1.0)
    builder.add_plain("share_from_above", EXPERTS=1.0, EXPERT_SHARE=-widest)
    builder.add_plain("share_near_all_below", EXPERT_SHARE=widest, T=1.0, UNIT=-widest, EXPERTS=-1.0)
    builder.add_plain("share_near_all_above", EXPERTS=1.0, T=-1.0, EXPERT_SHARE=-1.0, UNIT=1.0)


def _bounds(rates: Rates, placement: Placement, nodes: Nodes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lower, upper = np.zeros((len(nodes), NUM_COLS)), np.full((len(nodes), NUM_COLS), np.inf)
    widest = nodes.n_hi / nodes.n_lo
    lower[:, Col.UNIT] = upper[:, Col.UNIT] = lower[:, Col.T] = 1.0
    upper[:, Col.T] = widest
    for column in (Col.WEIGHTS, Col.EXPERTS, Col.DENSE, Col.DISK, Col.POOL):
        upper[:, column] = widest
    upper[:, [Col.ATTENTION, Col.KV, Col.EXPERT_SHARE]] = 1.0
    if not placement.experts_on_cpu:
        lower[:, Col.EXPERT_SHARE] = 1.0
    if not rates.machine.disk_bytes:
        upper[:, Col.DISK] = 0.0
    if placement.expert_cache != "rows":
        lower[:, Col.WEIGHTS] = largest_top_k(rates.sizes) / rates.sizes.num_experts_total
        upper[:, [Col.DISK, Col.POOL]] = 0.0
    if placement.attention == "cpu":
        upper[:, [Col.ATTENTION, Col.KV]] = 0.0
    if placement.attention in ("resident", "streamed"):
        lower[:, Col.ATTENTION] = 1.0
    if placement.attention == "resident":
        lower[:, Col.KV] = 1.0
    return lower, upper

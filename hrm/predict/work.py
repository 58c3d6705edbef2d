"""Time forms of one pass: how long each processor and each link is busy."""

from dataclasses import dataclass

import numpy as np

from hrm.predict.forms import Form, form
from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape
from hrm.predict.traffic import dtoh_traffic, htod_traffic, link_seconds
from hrm.roofline.operator import Quantity
from hrm.schedule.placement import Placement


@dataclass(frozen=True)
class PassWork:
    """Busy seconds of each resource in one pass, all forms [nodes, terms].

    The expert parts are lists of forms of which the largest counts (compute roof, memory roof).
    """

    gpu_dense: Form
    gpu_experts: list[Form]
    cpu_attention: Form
    cpu_experts: list[Form]
    htod: Form
    dtoh: Form
    disk: Form
    link: Form
    dram: Form
    gpu_floor: Form


def pass_work(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> PassWork:
    """Forms of the busy time of every resource in one pass.

    Includes weights, KV, Q/K/V, hidden-state and embedding traffic, transfer latencies, and the DRAM traffic that CPU
    work and copies share. Leaves out kernel launches, norms and sampling, and pipeline fill and drain.
    """
    htod_bytes, htod_latency = htod_traffic(rates, placement, shape, nodes)
    dtoh_bytes, dtoh_latency = dtoh_traffic(rates, placement, shape, nodes)
    disk_bytes = form(len(nodes), DISK=rates.sizes.expert_bytes)
    cpu_bytes = _cpu_bytes(rates, placement, shape, nodes)
    machine = rates.machine
    disk_seconds = disk_bytes / machine.link_bytes_per_s("disk_read") if machine.profile.disk else disk_bytes * 0.0
    return PassWork(
        gpu_dense=_gpu_dense(rates, shape, nodes),
        gpu_experts=_gpu_experts(rates, placement, shape, nodes),
        cpu_attention=_cpu_attention(rates, shape, nodes),
        cpu_experts=_cpu_experts(rates, placement, shape, nodes),
        htod=htod_bytes / machine.link_bytes_per_s("htod") + htod_latency,
        dtoh=dtoh_bytes / machine.link_bytes_per_s("dtoh") + dtoh_latency,
        disk=disk_seconds,
        link=link_seconds(rates, shape, nodes),
        gpu_floor=_gpu_floor(rates, shape, nodes),
        dram=(cpu_bytes + htod_bytes + dtoh_bytes + disk_bytes) / machine.cpu_memory_bytes_per_s,
    )


def _gpu_dense(rates: Rates, shape: PassShape, nodes: Nodes) -> Form:
    prompt = shape.prefill_share * rates.workload.prompt_len
    per_n = np.full(len(nodes), prompt * rates.prefill_seconds_per_token[0])
    per_n += shape.prefill_share * rates.prefill_attention_seconds
    attention = 0.0
    if shape.decode_share:
        tokens = shape.decode_share * nodes.mu_hi
        per_n += rates.dense_seconds(tokens, tokens) / nodes.mu_hi
        attention = shape.decode_share * rates.decode_attention_seconds["gpu"]
    return form(len(nodes), N=per_n, N_ATTENTION=attention)


def _gpu_experts(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> list[Form]:
    prefill = shape.prefill_share * rates.workload.prompt_len * rates.prefill_seconds_per_token[1]
    share = shape.decode_share
    if not share:
        return [form(len(nodes), N=prefill)]  # prefill computes every expert on the GPU
    if placement.ffn == "micro_batch":
        swept = rates.expert_seconds(share * nodes.mu_hi) / nodes.mu_hi
        return [form(len(nodes), N_EXPERTS=swept + prefill)]
    compute = share * rates.expert_compute_seconds("gpu", 1.0, share * nodes.n_hi)
    moved = share * rates.expert_activation_seconds("gpu", 1.0)
    read = rates.expert_weight_seconds("gpu", share * nodes.n_lo)
    return [
        form(len(nodes), N_EXPERTS=compute + prefill),
        form(len(nodes), N_EXPERTS=moved + prefill, EXPERTS=read),
    ]


def _gpu_floor(rates: Rates, shape: PassShape, nodes: Nodes) -> Form:
    """A pass that only prefills reads its weights at least once, however few its tokens."""
    if shape.decode_share:
        return form(len(nodes))
    experts = rates.expert_weight_seconds("gpu", nodes.n_lo * shape.tokens_per_sequence(rates.workload))
    return form(len(nodes), ONE=rates.dense_read_seconds + experts)


def _cpu_attention(rates: Rates, shape: PassShape, nodes: Nodes) -> Form:
    if not shape.decode_share:
        return form(len(nodes))
    seconds = shape.decode_share * rates.decode_attention_seconds["cpu"]
    return form(len(nodes), N=seconds, N_ATTENTION=-seconds)


def _cpu_experts(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> list[Form]:
    if not placement.experts_on_cpu or not shape.decode_share:
        return [form(len(nodes))]
    tokens = shape.tokens_per_sequence(rates.workload)
    batch = nodes.mu_hi if placement.ffn == "micro_batch" else nodes.n_hi
    compute = tokens * rates.expert_compute_seconds("cpu", 1.0, tokens * batch)
    moved = tokens * rates.expert_activation_seconds("cpu", 1.0)
    if placement.ffn == "micro_batch":  # every micro-batch reads its experts again
        swept = moved + rates.expert_weight_seconds("cpu", tokens * nodes.mu_hi) / nodes.mu_hi
        return [form(len(nodes), N=time, N_EXPERTS=-time) for time in (compute, swept)]
    read = rates.expert_weight_seconds("cpu", tokens * nodes.n_lo)
    return [
        form(len(nodes), N=compute, N_EXPERTS=-compute),
        form(len(nodes), N=moved, N_EXPERTS=-moved, ONE=read, EXPERTS=-read),
    ]


def _cpu_bytes(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> Form:
    attention = shape.decode_share * rates.decode_attention_bytes
    result = form(len(nodes), N=attention, N_ATTENTION=-attention)
    if not placement.experts_on_cpu or not shape.decode_share:
        return result
    tokens = shape.tokens_per_sequence(rates.workload)
    moved: Quantity = tokens * rates.expert_activation_bytes
    if placement.ffn == "micro_batch":
        moved = moved + rates.sizes.expert_bytes * rates.sizes.touched_share(tokens * nodes.mu_hi) / nodes.mu_hi
        return result + form(len(nodes), N=moved, N_EXPERTS=-moved)
    read = rates.sizes.expert_bytes * rates.sizes.touched_share(tokens * nodes.n_lo)
    return result + form(len(nodes), N=moved, N_EXPERTS=-moved, ONE=read, EXPERTS=-read)

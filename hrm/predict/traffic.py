"""Traffic forms of one pass: what crosses the links, and in how many copies."""

import numpy as np

from hrm.predict.forms import Form, form
from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape
from hrm.roofline.operator import Quantity
from hrm.schedule.kept_prompts import kept_prompt_tokens
from hrm.schedule.placement import Placement


def _streamed_experts(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> tuple[Form, Form]:
    """Bytes and number of expert pages copied to the GPU in a pass: computed there but not resident."""
    touched: Quantity = np.ones(len(nodes))
    if placement.overlap == "on_demand" and shape.decode_share:
        touched = rates.sizes.touched_share(shape.tokens_per_sequence(rates.workload) * nodes.mu_lo)
    computed = "EXPERTS" if shape.decode_share else "ONE"
    share = form(len(nodes), **{computed: touched, "WEIGHTS": -touched})
    return share * rates.sizes.expert_bytes, share * float(rates.sizes.num_experts_total)


def htod_traffic(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> tuple[Form, Form]:
    """Bytes to the GPU in a pass, and the seconds of latency of their copies."""
    sizes, share = rates.sizes, shape.decode_share
    expert_bytes, pages = _streamed_experts(rates, placement, shape, nodes)
    kv = share * sizes.kv_bytes_per_sequence(rates.workload.mean_context_len) * rates.kv_replication
    attended = share * sizes.attention_output_bytes
    tokens = shape.tokens_per_sequence(rates.workload)
    hidden = _spilled_bytes(rates, placement, shape, nodes)
    experts = _host_expert_bytes(rates, placement, shape)
    moved = expert_bytes + form(
        len(nodes),
        ONE=sizes.dense_bytes,
        DENSE=-sizes.dense_bytes,
        N=attended + hidden + tokens * sizes.hidden_bytes + experts,
        N_ATTENTION=kv - attended,
        N_KV=-kv,
    )
    copies = _copies_per_sequence(rates, placement, shape, nodes) + _kv_copies(rates, placement, shape, nodes)
    latency = rates.machine.link_latency("htod") / rates.machine.tensor_parallel_size
    return moved, latency * (pages + form(len(nodes), N=copies))


def dtoh_traffic(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> tuple[Form, Form]:
    """Bytes to the host in a pass, and the seconds of latency of their copies."""
    sizes, share = rates.sizes, shape.decode_share
    prompt = shape.prefill_share * rates.workload.prompt_len
    queried = share * sizes.attention_input_bytes
    stored = share * sizes.kv_bytes_per_token
    prefilled = prompt * sizes.kv_bytes_per_token
    hidden = _spilled_bytes(rates, placement, shape, nodes)
    moved = form(
        len(nodes),
        N=queried + prefilled + hidden + _host_expert_bytes(rates, placement, shape),
        N_ATTENTION=stored - queried,
        N_KV=-stored - prefilled,
    )
    copies = _copies_per_sequence(rates, placement, shape, nodes)
    return moved, form(len(nodes), N=copies * rates.machine.link_latency("dtoh") / rates.machine.tensor_parallel_size)


def _spilled_bytes(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> Quantity:
    """Hidden states of prefill that wait on the host between layers, per sequence and direction; none where a pass that
    decodes too has few prompts.
    """
    if not placement.spills_hidden_states:
        return 0.0
    prompt = shape.prefill_share * rates.workload.prompt_len
    spilled = prompt * (rates.model.num_layers - 1) * rates.sizes.hidden_bytes
    if not (placement.mixed_prefill and shape.decode_share):
        return spilled
    few = nodes.n_lo * prompt <= kept_prompt_tokens(rates.prefill_chunk_tokens) + 1  # a pass has whole tokens
    return np.where(few, 0.0, spilled)


def _host_expert_bytes(rates: Rates, placement: Placement, shape: PassShape) -> float:
    """Hidden states to, and results from, experts on the CPU, per sequence and direction, whatever their share."""
    if not placement.experts_on_cpu or not shape.decode_share:
        return 0.0
    return shape.tokens_per_sequence(rates.workload) * rates.sizes.num_expert_layers * rates.sizes.hidden_bytes


def _copies_per_sequence(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> Form:
    """Small copies each way per sequence: one per layer and micro-batch where the CPU attends or computes experts."""
    crossings = int(placement.attends_on_cpu) + int(placement.experts_on_cpu)
    if not shape.decode_share:
        return np.zeros(len(nodes))
    copies: Form = crossings * rates.model.num_layers / nodes.mu_hi
    return copies


def _kv_copies(rates: Rates, placement: Placement, shape: PassShape, nodes: Nodes) -> Form:
    streams = placement.streams_kv and bool(shape.decode_share)
    copies: Form = float(streams) * rates.model.num_layers / nodes.mu_hi
    return copies


def link_seconds(rates: Rates, shape: PassShape, nodes: Nodes) -> Form:
    """Seconds between GPUs: two ring all-reduces of the hidden states per layer, 2 (p - 1) / p of the bytes each."""
    devices = rates.machine.tensor_parallel_size
    if devices == 1:
        return form(len(nodes))
    reduces = 2 * rates.model.num_layers
    tokens = shape.tokens_per_sequence(rates.workload)
    moved = reduces * tokens * rates.sizes.hidden_bytes * 2 * (devices - 1) / devices
    calls = reduces * (shape.decode_share > 0) / nodes.mu_hi
    latency = rates.machine.link_latency("gpu_to_gpu")
    return form(len(nodes), N=moved / rates.machine.link_bytes_per_s("gpu_to_gpu") + calls * latency)

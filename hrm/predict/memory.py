"""Memory forms: peak GPU, CPU and disk bytes from named parts."""

from hrm.predict.forms import Form, form
from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.predict.shapes import cached_tokens
from hrm.roofline.sizes import FP32
from hrm.schedule.kept_prompts import kept_prompt_tokens
from hrm.schedule.placement import Placement

Parts = dict[str, Form]
"""Bytes by part name; the memory needed is their sum."""

DOUBLE_BUFFER = 2  # one buffer is filled while the other is used
RESIDUAL_COPIES = 2  # hidden state and residual


def gpu_parts(rates: Rates, placement: Placement, nodes: Nodes) -> dict[str, Parts]:
    """Peak bytes on all GPUs while decoding and while prefilling; activations of the two are never alive together."""
    home = _gpu_home(rates, placement, nodes)
    return {
        "decode": {**home, "activations": _decode_activations(rates, placement, nodes)},
        "prefill": {**home, "activations": _prefill_activations(rates, placement, nodes)},
    }


def _gpu_home(rates: Rates, placement: Placement, nodes: Nodes) -> Parts:
    sizes, k = rates.sizes, len(nodes)
    kv = sizes.kv_bytes_per_sequence(cached_tokens(rates.workload, placement.mixed_prefill)) * rates.kv_replication
    dense_buffer = DOUBLE_BUFFER * sizes.largest_dense_unit_bytes
    staging = 0.0 * nodes.mu_lo
    if placement.streams_kv:
        context = rates.workload.final_context_len
        staging = DOUBLE_BUFFER * nodes.mu_lo * context * sizes.kv_layer_bytes_max * rates.kv_replication
    return {
        "expert_weights": form(k, WEIGHTS=sizes.expert_bytes),
        "dense_weights": form(k, DENSE=sizes.dense_bytes),
        "page_pool": form(k, POOL=1.0),
        "dense_buffers": form(k, ONE=dense_buffer, DENSE=-dense_buffer),
        "kv_cache": form(k, N_KV=kv),
        "kv_staging": form(k, ONE=staging),
    }


def _decode_activations(rates: Rates, placement: Placement, nodes: Nodes) -> Form:
    sizes, devices = rates.sizes, rates.machine.tensor_parallel_size
    per_micro_batch = nodes.mu_lo * (sizes.projection_workspace_bytes + sizes.logit_bytes)
    experts = sizes.expert_workspace_bytes
    hidden = RESIDUAL_COPIES * sizes.hidden_bytes * devices
    if placement.ffn == "batch":
        # The expert phase of a mixed pass takes its decode and its prefill tokens through each page together.
        tokens = rates.workload.prompt_len / rates.workload.gen_len if placement.mixed_prefill else 0.0
        piece = sizes.expert_piece_bytes(float(rates.prefill_chunk_tokens))
        return form(len(nodes), ONE=per_micro_batch + piece, N=(1 + tokens) * (hidden + experts))
    piece = sizes.expert_piece_bytes(nodes.mu_lo)
    return form(len(nodes), ONE=per_micro_batch + nodes.mu_lo * experts + piece, N=hidden)


def _prefill_activations(rates: Rates, placement: Placement, nodes: Nodes) -> Form:
    """One chunk in work, the hidden states of the chunks before and after it in flight, and the K and V in one layer of
    the longest prompt that a chunk may be a later part of. Hidden states of all chunks stay where they are not left
    on the host between layers; where attention of all comes before experts of any (FlexGen, experts on
    demand), the experts' inputs too. A mixed pass also holds the decoding batch's hidden states, and those of
    few prompts between layers.
    """
    sizes, devices = rates.sizes, rates.machine.tensor_parallel_size
    chunk = rates.prefill_chunk_tokens
    hidden = (RESIDUAL_COPIES + DOUBLE_BUFFER) * sizes.hidden_bytes * devices
    work = chunk * (hidden + sizes.projection_workspace_bytes + sizes.expert_workspace_bytes)
    piece = sizes.expert_piece_bytes(float(chunk))
    logits = chunk / rates.workload.prompt_len * sizes.logit_bytes
    earlier = max(0, rates.workload.prompt_len_max - chunk) * sizes.kv_layer_bytes_max * rates.kv_replication
    decoding = RESIDUAL_COPIES * sizes.hidden_bytes * devices if placement.mixed_prefill else 0.0
    kept = 0.0 if placement.spills_hidden_states else rates.workload.prompt_len * sizes.hidden_bytes * devices
    if placement.stepwise or placement.overlap == "on_demand":
        kept = RESIDUAL_COPIES * rates.workload.prompt_len * sizes.hidden_bytes * devices
    if placement.expert_cache != "rows":  # and their sums in fp32: every expert serves all chunks before it may go
        kept += rates.workload.prompt_len * rates.model.hidden_size * FP32 * devices
    waiting = sizes.hidden_bytes * devices + sizes.kv_layer_bytes_max * rates.kv_replication  # K and V to be stored
    few = waiting * kept_prompt_tokens(chunk) if placement.mixed_prefill else 0.0
    return form(len(nodes), ONE=work + piece + logits + earlier + few, N=decoding + kept)


def pool_need(rates: Rates, placement: Placement, nodes: Nodes) -> Form:
    """Bytes that the page pool must have: whole layers of streamed experts, or a ring.

    A ring needs two pages where each page meets all its tokens at once; a pass that prefills chunk by chunk goes
    through a layer's experts once per chunk, so the ring then holds a layer's streamed experts and a page being filled.
    """
    prefill_alone = not placement.mixed_prefill or rates.workload.gen_len == 1  # such a pass uses every expert
    layer = rates.sizes.expert_layer_bytes
    page = rates.sizes.expert_page_bytes
    if placement.pool_layers is None and not prefill_alone:
        return form(len(nodes), ONE=DOUBLE_BUFFER * page)
    if placement.pool_layers is None:
        return form(len(nodes), ONE=layer + page, WEIGHTS=-layer)
    layers = placement.pool_layers * layer  # also with mixing: the first pass of a run has nothing to decode yet
    return form(len(nodes), ONE=layers, WEIGHTS=-layers)


def cpu_parts(rates: Rates, placement: Placement, nodes: Nodes) -> Parts:
    """Peak bytes in CPU memory: weights that are neither on the GPU nor on disk, KV, and what is in transit.

    Of every prompt token the hidden state has a place there: where it waits between layers, or, if it stays on the
    GPU, where its embedding is gathered to be sent.
    """
    sizes, k = rates.sizes, len(nodes)
    kv = sizes.kv_bytes_per_sequence(cached_tokens(rates.workload, placement.mixed_prefill))
    prefilled = rates.workload.prompt_len * sizes.hidden_bytes
    if placement.mixed_prefill:
        prefilled /= rates.workload.gen_len
    transit = (sizes.attention_input_bytes + sizes.attention_output_bytes) / rates.model.num_layers
    staging = DOUBLE_BUFFER * sizes.expert_layer_bytes
    return {
        "expert_weights": form(k, ONE=sizes.expert_bytes, WEIGHTS=-sizes.expert_bytes, DISK=-sizes.expert_bytes),
        "dense_weights": form(k, ONE=sizes.dense_bytes, DENSE=-sizes.dense_bytes),
        "embedding": form(k, ONE=sizes.embedding_bytes),
        "encoder": form(k, ONE=sizes.encoder_bytes),
        "disk_staging": form(k, DISK=staging),
        "kv_cache": form(k, N=kv, N_KV=-kv),
        "prefill_hidden_states": form(k, N=prefilled),
        "transit_buffers": form(k, N=transit + sizes.hidden_bytes),
    }


def disk_parts(rates: Rates, nodes: Nodes) -> Parts:
    """Bytes on disk."""
    return {"expert_weights": form(len(nodes), DISK=rates.sizes.expert_bytes)}

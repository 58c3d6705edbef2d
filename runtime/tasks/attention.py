"""Attention on either side, and what crosses for the CPU's.

T tokens, N query heads, K key-value heads, D head_dim.
"""

from dataclasses import replace

import torch
from torch import Tensor

from hrm.schedule.task import Resource, Task
from runtime.kernels.cpu_attention import decode_attention as cpu_decode_attention
from runtime.kernels.gpu_attention import (
    attends_ragged,
    causal_attention,
    decode_attention,
    grouped_causal_attention,
    ragged_causal_attention,
)
from runtime.memory.kv_cache import new_kv
from runtime.models.common import rotary
from runtime.tables import PrefillTables
from runtime.tasks.layer_plan import send_choices
from runtime.tasks.state import PassState, only_micro_batch


def pre_attention(state: PassState, index: int, task: Task) -> None:
    """Norm, projections, rotary embedding."""
    j, memory = only_micro_batch(task), state.memory
    if task.layer == 0 and state.carried.dense is not None:
        state.device.order_after(state.carried.dense)
    weights, hidden = memory.dense.tensors(task.layer), state.hidden[j]
    if j not in state.rotation:
        positions = state.tables[j].positions
        state.rotation[j] = rotary(memory.config, positions, state.torch_device, hidden.dtype)
    if state.steps is not None:
        added = state.from_cpu.pop(j, None)
        state.hidden[j], state.qkv[j] = state.steps.pre(task.layer, weights, hidden, added, state.rotation[j])
        return
    hidden = state.complete_hidden(j)
    state.qkv[j] = memory.family.pre_attention(memory.config, weights, hidden, *state.rotation[j])
    if j in state.storing:
        state.to_store[j] = state.qkv[j]
    shape = (hidden.shape[0], memory.config.q_width)
    state.attended[j] = torch.empty(shape, dtype=hidden.dtype, device=state.torch_device)


def post_attention(state: PassState, index: int, task: Task) -> None:
    """Output projection, router, shared experts or dense FFN."""
    j, memory = only_micro_batch(task), state.memory
    weights = memory.dense.tensors(task.layer)
    if state.steps is not None:
        routed = state.steps.post(task.layer, weights)
    else:
        routed = memory.family.post_attention(memory.config, weights, state.hidden[j], state.attended.pop(j))
    if j in state.replayed and routed.experts is not None:
        routed = replace(routed, experts=state.replayed[j][:, memory.moe_place(task.layer)])
    state.hidden[j], state.routed[j] = routed.hidden, routed
    send_choices(state, j, routed)
    if state.routing is not None:
        state.routing.keep(j, routed)
    del state.qkv[j]


def qkv_offload(state: PassState, index: int, task: Task) -> None:
    """Queries and new K, V of the sequences that the CPU attends."""
    j = only_micro_batch(task)
    mine = state.qkv[j][state.batch.rows[j].gpu_sequences :]
    state.memory.staging("qkv", j).host(tuple(mine.shape), mine.dtype).copy_(mine, non_blocking=True)


def cpu_attention(state: PassState, index: int, task: Task) -> None:
    """Decode attention beside the KV cache in CPU memory."""
    j, memory, tables = only_micro_batch(task), state.memory, state.tables[only_micro_batch(task)].decode
    assert tables is not None
    config, batch = memory.config, len(tables.cpu_lengths)
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    qkv = memory.staging("qkv", j).host((batch, heads, config.head_dim), config.dtype)
    out = memory.staging("attended", j).host((batch, config.num_attention_heads, config.head_dim), config.dtype)
    kv, scale = memory.kv.host[task.layer], config.head_dim**-0.5
    cpu_decode_attention(qkv, kv, tables.cpu_table, tables.cpu_lengths, out, scale, memory.cpu_threads)


def attention_load(state: PassState, index: int, task: Task) -> None:
    """The CPU's result to the device."""
    j = only_micro_batch(task)
    mine = state.attended[j][state.batch.rows[j].gpu_sequences :]
    state.memory.staging("attended", j).load(mine, by_kernel=task.resource == Resource.ZERO_COPY)


def gpu_attention(state: PassState, index: int, task: Task) -> None:
    """Decode attention of the sequences that the GPU attends, or causal attention of prompts."""
    j = only_micro_batch(task)
    if state.steps is not None:
        state.steps.attend(task.layer, state.memory.kv.gpu[task.layer])
    elif state.batch.rows[j].is_prefill:
        _attend_prompts(state, j, task.layer)
    else:
        _attend_decoding(state, j, task.layer)


def _attend_decoding(state: PassState, j: int, layer: int) -> None:
    rows, tables, memory = state.batch.rows[j], state.tables[j].decode, state.memory
    assert tables is not None
    qkv, r, g, out = state.qkv[j], rows.resident, rows.gpu_sequences, state.attended[j]
    shape = memory.config.num_attention_heads, memory.config.head_dim**-0.5
    lengths, counts = tables.gpu_lengths, tables.gpu_blocks
    if r:
        pool, home = memory.kv.gpu[layer], tables.resident_home
        pool[home[0], :, :, home[1]] = new_kv(memory.config, qkv[:r])
        table, masks = tables.resident_table, tables.resident_masks
        out[:r] = decode_attention(qkv[:r], pool, table, lengths[:r], *shape, counts[:r], masks, stored=True)
    if g > r:
        staged = state.staged_kv.pop((layer, j))
        table, masks = tables.staged_table, tables.staged_masks
        out[r:g] = decode_attention(qkv[r:g], staged, table, lengths[r:], *shape, counts[r:], masks)


def _attend_prompts(state: PassState, j: int, layer: int) -> None:
    tables, config, qkv, out = state.tables[j].prefill, state.memory.config, state.qkv[j], state.attended[j]
    assert tables is not None
    if tables.gpu.shape[1]:
        row, block, offset = tables.gpu
        state.memory.kv.gpu[layer][block, :, :, offset] = new_kv(config, qkv[row])
    heads = config.num_attention_heads, config.num_key_value_heads
    q, k, v = qkv[:, : heads[0]], qkv[:, heads[0] : -heads[1]], qkv[:, -heads[1] :]
    scale = config.head_dim**-0.5
    if attends_ragged(q.device, q.dtype):
        borders = tables.borders.to(torch.int32)
        out.copy_(ragged_causal_attention(q, k, v, borders, tables.longest, scale).flatten(1))
    else:
        for group in tables.groups:
            grouped_causal_attention(q, k, v, group, scale, out)
    _attend_parts(state, tables, (q, k, v), out)


def _attend_parts(state: PassState, tables: PrefillTables, heads: tuple[Tensor, Tensor, Tensor], out: Tensor) -> None:
    """Pieces of prompts that other chunks hold the rest of: with the K, V of what came before, kept for what comes."""
    q, k, v = heads
    for part in tables.parts:
        rows = slice(part.row, part.row + part.stop - part.start)
        keys, values = k[rows], v[rows]
        if part.start:
            before = state.earlier.pop(part.slot)
            keys, values = torch.cat((before[0], keys)), torch.cat((before[1], values))
        if not part.last:
            state.earlier[part.slot] = (keys, values)
        out[rows] = causal_attention(q[rows], keys, values, state.memory.config.head_dim**-0.5)

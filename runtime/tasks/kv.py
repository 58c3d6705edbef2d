"""K and V on their way: new ones to their pool in CPU memory, cached ones to the device for attention there.

T tokens, N query heads, K key-value heads, D head_dim.
"""

import torch
from torch import Tensor

from hrm.schedule.steps import KV_BUFFERS
from hrm.schedule.task import Resource, Task
from runtime.memory.device_view import words_of
from runtime.memory.kv_cache import new_kv
from runtime.tables import PrefillTables
from runtime.tasks.state import PassState, only_micro_batch


def kv_store(state: PassState, index: int, task: Task) -> None:
    """New K, V to the host's pool: of prompts, or of decoding sequences attended on the GPU."""
    j = only_micro_batch(task)
    rows, tables = state.batch.rows[j], state.tables[j]
    qkv = state.hand_over(state.to_store.pop(j), Resource.DTOH)
    if tables.prefill is not None:
        kv, home = _prompt_kv(state, qkv, tables.prefill), tables.prefill.host[1:]
    else:
        assert tables.decode is not None
        kv, home = new_kv(state.memory.config, qkv[rows.resident : rows.gpu_sequences]), tables.decode.store
    if not kv.shape[0]:
        return
    if state.memory.kv.host_words:
        _store_by_kernel(state, task.layer, kv, tables.host_homes)
        return
    host = state.memory.staging("kv_store", None).host(tuple(kv.shape), kv.dtype)
    host.copy_(kv, non_blocking=True)
    state.device.host_wait(state.device.mark())
    state.memory.kv.host[task.layer][home[0], :, :, home[1]] = host


def _store_by_kernel(state: PassState, layer: int, kv: Tensor, home: Tensor) -> None:
    """kv [T, 2, K, D] straight into page-locked blocks."""
    words = state.memory.kv.host_words[layer]
    blocks = words.view(words.shape[0], 2, kv.shape[2], state.memory.kv.host[layer].shape[3], -1)
    blocks[home[0], :, :, home[1]] = words_of(kv).view(*kv.shape[:3], -1)


def _prompt_kv(state: PassState, qkv: Tensor, tables: PrefillTables) -> Tensor:
    return new_kv(state.memory.config, qkv[tables.host_rows]) if len(tables.host_rows) else qkv[:0]


def kv_stage(state: PassState, index: int, task: Task) -> None:
    """Cached K, V of a micro-batch, pageable to page-locked memory."""
    tables, pool = state.tables[only_micro_batch(task)].decode, state.memory.kv.host[task.layer]
    assert tables is not None
    shape = (len(tables.fetched_host), *pool.shape[1:])
    if not shape[0]:
        return
    host = state.memory.staging("kv_stage", state.kv_stages % KV_BUFFERS).host(shape, pool.dtype)
    state.kv_stages += 1
    torch.index_select(pool, 0, tables.fetched_host, out=host)


def kv_fetch(state: PassState, index: int, task: Task) -> None:
    """Cached K, V of a micro-batch to the device: gathered by a kernel from page-locked blocks, or staged before."""
    j, memory = only_micro_batch(task), state.memory
    tables, pool = state.tables[j].decode, memory.kv.host[task.layer]
    assert tables is not None
    shape = (len(tables.fetched_host), *pool.shape[1:])
    if not shape[0]:
        return
    out = memory.kv_buffers[state.kv_fetches % KV_BUFFERS][: shape[0]]
    if state.stages_kv:
        memory.staging("kv_stage", state.kv_fetches % KV_BUFFERS).load(out, by_kernel=False)
    elif memory.kv.host_words:
        words = memory.kv.host_words[task.layer]
        torch.index_select(words, 0, tables.fetched, out=words_of(out).view(shape[0], -1))
    else:
        torch.index_select(pool, 0, tables.fetched_host, out=out)
    state.kv_fetches += 1
    state.staged_kv[task.layer, j] = out

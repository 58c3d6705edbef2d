"""What copies of activations and KV cache read and write."""

from hrm.schedule.access_table import AccessTable
from hrm.schedule.buffers import (
    ATTENDED,
    HIDDEN,
    HOST_ATTENDED,
    HOST_QKV,
    HOST_RESULT,
    HOST_ROUTED,
    KV,
    QKV,
    RELOADED,
    ROUTED,
    SPILLED,
    STAGED_KV,
    WHOLE,
)
from hrm.schedule.steps import KV_BUFFERS
from hrm.schedule.task import Task


def embedding_load(table: AccessTable, i: int, task: Task) -> None:
    """Writes what the first layer reads."""
    table.write(i, HIDDEN, task.micro_batch, 0, WHOLE)


def hidden_load(table: AccessTable, i: int, task: Task) -> None:
    """The last at a place where the CPU has experts brings their result, all others a spilled hidden state."""
    if table.on_cpu(task.layer, task.micro_batch) and table.is_last(task):
        table.read(i, HOST_RESULT, task.micro_batch, task.layer)
        table.write_output(i, task)
    else:
        table.read(i, SPILLED, task.micro_batch, task.layer)
        table.write(i, HIDDEN, task.micro_batch, task.layer, RELOADED)


def hidden_store(table: AccessTable, i: int, task: Task) -> None:
    """The first at a place where the CPU has experts sends them their tokens, all others spill."""
    j = task.micro_batch
    if (table.on_cpu(task.layer, j) or table.on_cpu(task.layer, None)) and table.is_first(task):
        table.read(i, ROUTED, j, task.layer, WHOLE)
        table.write(i, HOST_ROUTED, j, task.layer)
    else:
        table.read(i, HIDDEN, j, task.layer + 1, WHOLE)
        table.write(i, SPILLED, j, task.layer + 1)


def qkv_offload(table: AccessTable, i: int, task: Task) -> None:
    """Q, K, V to the host."""
    table.read(i, QKV, task.micro_batch, task.layer)
    table.write(i, HOST_QKV, task.micro_batch, task.layer)


def attention_load(table: AccessTable, i: int, task: Task) -> None:
    """Attention result to the GPU."""
    table.read(i, HOST_ATTENDED, task.micro_batch, task.layer)
    table.write(i, ATTENDED, task.micro_batch, task.layer)


def kv_stage(table: AccessTable, i: int, task: Task) -> None:
    """Cached K, V to page-locked memory, for the fetch at the same place."""
    fetch = table.kv.get((task.layer, task.micro_batch), -1)
    table.write(i, STAGED_KV, fetch % KV_BUFFERS, fetch)


def kv_fetch(table: AccessTable, i: int, task: Task) -> None:
    """Into the staging buffers in turn."""
    if table.staged_kv:
        table.read(i, STAGED_KV, table.kv_fetches % KV_BUFFERS, table.kv_fetches)
    table.write(i, KV, table.kv_fetches % KV_BUFFERS, table.kv_fetches)
    table.kv_fetches += 1


def kv_store(table: AccessTable, i: int, task: Task) -> None:
    """New K, V to the host; that memory is never used again within a pass."""
    table.read(i, QKV, task.micro_batch, task.layer)

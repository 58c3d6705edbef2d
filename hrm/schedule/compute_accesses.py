"""What tasks of the GPU, the CPU and the GPUs together read and write."""

from hrm.schedule.access_table import AccessTable, pages_of
from hrm.schedule.buffers import (
    ATTENDED,
    HIDDEN,
    HOST_ATTENDED,
    HOST_QKV,
    HOST_RESULT,
    HOST_ROUTED,
    HOST_SHARE,
    KV,
    PAGE,
    PARTIAL,
    QKV,
    ROUTED,
    WHOLE,
)
from hrm.schedule.builder import STAGING_BUFFERS
from hrm.schedule.slot_accesses import read_slots
from hrm.schedule.steps import KV_BUFFERS
from hrm.schedule.task import Task


def pre_attention(table: AccessTable, i: int, task: Task) -> None:
    """Hidden state to Q, K, V."""
    table.read_input(i, task)
    table.write(i, QKV, task.micro_batch, task.layer)


def cpu_attention(table: AccessTable, i: int, task: Task) -> None:
    """Q, K, V to attention result, on the host."""
    table.read(i, HOST_QKV, task.micro_batch, task.layer)
    table.write(i, HOST_ATTENDED, task.micro_batch, task.layer)


def gpu_attention(table: AccessTable, i: int, task: Task) -> None:
    """Q, K, V and, where it is streamed, the KV cache to attention result."""
    table.read(i, QKV, task.micro_batch, task.layer)
    fetch = table.kv.get((task.layer, task.micro_batch))
    if fetch is not None:
        table.read(i, KV, fetch % KV_BUFFERS, fetch)
    table.write(i, ATTENDED, task.micro_batch, task.layer)


def post_attention(table: AccessTable, i: int, task: Task) -> None:
    """Attention result and residual to routed tokens, or where a layer has no experts to sum to its output."""
    table.read_input(i, task)
    table.read(i, ATTENDED, task.micro_batch, task.layer)
    if task.layer in table.routed_layers or table.reduced:
        table.write(i, ROUTED, task.micro_batch, task.layer, PARTIAL if table.reduced else WHOLE)
    else:
        table.write_output(i, task)


def expert_ffn(table: AccessTable, i: int, task: Task) -> None:
    """Routed tokens to a part of the layer's output."""
    for j in table.micro_batches(task):
        table.read(i, ROUTED, j, task.layer, WHOLE)
    for page in pages_of(task):
        table.read(i, PAGE, page % table.graph.pages.num_slots, page)
    if task.layer in table.slot_layers:
        read_slots(table, i, task)
    table.write_output(i, task)


def cpu_expert_ffn(table: AccessTable, i: int, task: Task) -> None:
    """Routed tokens to a part of the layer's output, on the host."""
    for j in table.micro_batches(task):
        table.read(i, HOST_ROUTED, j, task.layer)
    share = table.host_shares.get(task.layer)
    if share is not None:
        table.read(i, HOST_SHARE, share % STAGING_BUFFERS, share)
    table.write(i, HOST_RESULT, task.micro_batch, task.layer)


def all_reduce(table: AccessTable, i: int, task: Task) -> None:
    """The first sums what attention left, the second a layer's output, be it of experts or of a dense FFN."""
    j, layer = task.micro_batch, task.layer
    if table.is_first(task):
        table.read(i, ROUTED, j, layer, PARTIAL)
        table.write(i, ROUTED, j, layer, WHOLE)
    elif layer in table.routed_layers:
        table.read(i, HIDDEN, j, layer + 1, PARTIAL)
        table.write(i, HIDDEN, j, layer + 1, WHOLE)
    else:
        table.read(i, ROUTED, j, layer, WHOLE)
        table.write(i, HIDDEN, j, layer + 1, WHOLE)


def lm_head(table: AccessTable, i: int, task: Task) -> None:
    """Reads what the last layer wrote."""
    table.read(i, HIDDEN, task.micro_batch, table.graph.num_layers, WHOLE)
    table.read_dense(i, table.graph.num_layers)

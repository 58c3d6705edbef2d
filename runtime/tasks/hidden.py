"""Hidden states in and out: embedding rows, prefill that waits on the host, experts on the CPU, and the LM head."""

import torch

from hrm.schedule.task import Resource, Task
from runtime.kernels.sampling import choose
from runtime.models.common import lm_head
from runtime.tasks.state import PassState, only_micro_batch

LOGIT_BYTES = 32 << 20  # of logits at a time


def embedding_load(state: PassState, index: int, task: Task) -> None:
    """Gathers a micro-batch's rows of the embedding and brings them to the device."""
    j = only_micro_batch(task)
    tokens, staging = torch.from_numpy(state.batch.rows[j].tokens), state.memory.staging("hidden", j)
    embedding = state.memory.embedding
    host = staging.host((len(tokens), embedding.shape[1]), embedding.dtype)
    torch.index_select(embedding, 0, tokens, out=host)
    state.hidden[j] = out = torch.empty(host.shape, dtype=host.dtype, device=state.torch_device)
    staging.load(out, by_kernel=task.resource == Resource.ZERO_COPY)
    state.hand_over(out, Resource.GPU)


def hidden_store(state: PassState, index: int, task: Task) -> None:
    """Hidden states to the host: for experts on the CPU (the first time in a layer), or to wait for the next layer."""
    j = only_micro_batch(task)
    if state.uses_cpu_experts(task.layer, j) and (task.layer, j) not in state.sent_to_cpu:
        _send_to_cpu(state, task.layer, j)
        return
    for part in (state.hidden[j], *([state.from_cpu[j]] if j in state.from_cpu else [])):
        state.hand_over(part, Resource.DTOH)  # their sum, where there is one, is made in this lane
    hidden = state.hand_over(state.complete_hidden(j), Resource.DTOH)
    del state.hidden[j]
    state.memory.staging("hidden", j).host(tuple(hidden.shape), hidden.dtype).copy_(hidden, non_blocking=True)
    state.spilled.add(j)


def _send_to_cpu(state: PassState, layer: int, j: int) -> None:
    routed = state.routed[j]
    assert routed.normed is not None and routed.experts is not None and routed.weights is not None
    state.sent_to_cpu[layer, j] = routed.weights.dtype
    sent = {"cpu_x": routed.normed, "cpu_e": routed.experts, "cpu_w": routed.weights}
    if state.memory.slots is not None:  # the layer's plan knows the experts
        del sent["cpu_e"]
    for name, tensor in sent.items():
        host = state.memory.staging(name, j).host(tuple(tensor.shape), tensor.dtype)
        host.copy_(state.hand_over(tensor, Resource.DTOH), non_blocking=True)
    if state.memory.slots is not None:
        _make_room_for_sums(state)


def _make_room_for_sums(state: PassState) -> None:
    """For what the CPU's experts give. Page-locking waits for the device, which waits for the CPU's thread by then."""
    rows, config = state.batch.rows, state.memory.config
    tokens = sum(len(own.tokens) for own in rows)
    buffer = state.memory.staging("cpu_out", 0 if len(rows) == 1 else None)
    buffer.host((tokens, config.hidden_size), config.dtype)


def hidden_load(state: PassState, index: int, task: Task) -> None:
    """Back to the device: what waited on the host, or what the CPU's experts add."""
    by_kernel = task.resource == Resource.ZERO_COPY
    hidden_size, dtype = state.memory.config.hidden_size, state.memory.config.dtype
    waiting = task.micro_batch is not None and task.micro_batch in state.spilled
    name = "hidden" if waiting else "cpu_out"
    tokens = sum(len(state.batch.rows[j].tokens) for j in state.members(task.micro_batch))
    if by_kernel and state.memory.slots is not None and not waiting and task.micro_batch is not None:
        staging = state.memory.staging(name, task.micro_batch)  # not written again before its reader is through
        state.from_cpu[task.micro_batch] = staging.arrive((tokens, hidden_size), dtype)
        return
    out = torch.empty((tokens, hidden_size), dtype=dtype, device=state.torch_device)
    state.memory.staging(name, task.micro_batch).load(out, by_kernel)
    state.hand_over(out, Resource.GPU)
    if waiting:
        state.spilled.discard(only_micro_batch(task))
        state.hidden[only_micro_batch(task)] = out
        return
    members = state.members(task.micro_batch)
    parts = torch.split(out, [len(state.batch.rows[j].tokens) for j in members])
    state.from_cpu.update(zip(members, parts, strict=True))


def head(state: PassState, index: int, task: Task) -> None:
    """Logits of the rows that yield tokens, and the tokens chosen; in pieces of bounded memory."""
    j, memory = only_micro_batch(task), state.memory
    rows = state.tables[j].logit_rows
    hidden = state.complete_hidden(j)[rows]  # [B, H]
    del state.hidden[j], state.rotation[j]
    if not len(rows):
        return
    weights = memory.dense.tensors(memory.config.num_layers)["lm_head"]
    step = max(1, LOGIT_BYTES // (4 * memory.config.vocab_size))
    chosen, kept = [], []
    for start in range(0, len(rows), step):
        logits = lm_head(memory.config, memory.final_norm, weights, hidden[start : start + step])  # [b, V]
        draw = state.tables[j].draw
        chosen.append(choose(logits, draw.rows(start, start + step) if draw else None))
        kept += [logits] if state.keep_logits else []
    state.tokens[j] = torch.cat(chosen)
    if kept:
        state.logits[j] = torch.cat(kept)

"""Routed experts on the GPU and on the CPU. T tokens, H hidden_size, k top_k."""

import torch
from torch import Tensor

from hrm.schedule.task import Task
from runtime.kernels.cpu_layer import cpu_layer
from runtime.kernels.expert_ffn import SortedTokens, add_slabs, combine, sort_tokens
from runtime.tasks.received import received
from runtime.tasks.state import ExpertWork, PassState


def expert_ffn(state: PassState, index: int, task: Task) -> None:
    """Experts on the GPU: the first task of a layer and micro-batch takes the resident rows too, the last adds up."""
    place = (task.layer, task.micro_batch)
    memory, work = state.memory, state.working.get(place)
    if work is None:
        state.working[place] = work = ExpertWork(_sorted(state, task.micro_batch))
        work.total = add_slabs(None, work.tokens, [memory.experts.resident[task.layer]])
    _add_pages(state, task, work)
    if index == state.last_expert_task[place]:
        _finish(state, task, state.working.pop(place))


def _add_pages(state: PassState, task: Task, work: ExpertWork) -> None:
    """Streamed pages; those that an earlier pass has fetched are waited for here."""
    pages = range(*task.work.pages)
    if not pages:
        return
    for page in pages:
        mark = state.carried.pages.get(page)
        if mark is not None:
            state.device.order_after(mark)
    touched = state.touched.get(task.layer)
    placed = state.paging.slabs(pages, state.carried.base)
    slabs = [state.memory.view(p) for p in placed if touched is None or p.slab.holds_any(touched)]
    work.total = add_slabs(work.total, work.tokens, slabs)


def _sorted(state: PassState, micro_batch: int | None) -> SortedTokens:
    members = [state.routed[j] for j in state.members(micro_batch)]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for routed in members:
        assert routed.normed is not None and routed.experts is not None and routed.weights is not None
        parts.append((routed.normed, routed.experts, routed.weights))
    x, experts, weights = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
    return sort_tokens(x, experts, weights, state.memory.config.num_experts)


def _finish(state: PassState, task: Task, work: ExpertWork) -> None:
    members = state.members(task.micro_batch)
    if work.total is not None:
        sizes = [len(state.batch.rows[m].tokens) for m in members]
        parts = torch.split(combine(work.total, work.tokens), sizes)
        for j, part in zip(members, parts, strict=True):
            state.hidden[j] = state.hidden[j] + part.to(state.hidden[j].dtype)
    for j in members:
        if not state.uses_cpu_experts(task.layer, j):
            del state.routed[j]


def cpu_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """The CPU's rows of the experts, from hidden states that were sent there."""
    memory, members = state.memory, state.members(task.micro_batch)
    config = memory.config
    counts = [len(state.batch.rows[j].tokens) for j in members]
    x = received(state, "cpu_x", members, [(n, config.hidden_size) for n in counts], config.dtype)
    experts = received(state, "cpu_e", members, [(n, config.top_k) for n in counts], torch.int64)
    weights = received(
        state, "cpu_w", members, [(n, config.top_k) for n in counts], state.sent_to_cpu[task.layer, members[0]]
    )
    out = memory.staging("cpu_out", task.micro_batch).host(tuple(x.shape), config.dtype)
    slabs = list(memory.experts.cpu_slabs(task.layer))
    cpu_layer(x, experts, weights, config.num_experts, slabs, out, memory.scratch)

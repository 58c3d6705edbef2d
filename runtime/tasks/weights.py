"""Weights on their way: pages of experts, and the other weights of a layer."""

import torch

from hrm.schedule.builder import STAGING_BUFFERS
from hrm.schedule.task import Task
from runtime.memory.paging import PagePiece
from runtime.tasks.state import PassState


def weight_fetch(state: PassState, index: int, task: Task) -> None:
    """A page to its slot in the pool."""
    page = task.work.pages[0]
    fetch_page(state, page, staged=state.stages_weights)
    if task.work.ahead:
        state.fetched_ahead.pages[page - state.paging.plan.per_pass] = state.device.mark()


def fetch_page(state: PassState, page: int, staged: bool = False) -> None:
    """Copies a page on the current lane; with experts fetched on demand, only those that the layer's tokens touch."""
    pool = state.memory.pool
    for piece, source in zip(_pieces(state, page), _sources(state, page, staged), strict=True):
        pool[piece.pool_start : piece.pool_start + piece.stop - piece.start].copy_(source, non_blocking=True)


def weight_stage(state: PassState, index: int, task: Task) -> None:
    """A page from pageable to page-locked memory."""
    page = task.work.pages[0]
    for source, target in zip(_sources(state, page, False), _sources(state, page, True), strict=True):
        target.copy_(source)


def _pieces(state: PassState, page: int) -> tuple[PagePiece, ...]:
    pieces = state.paging.pieces(page, state.carried.base)
    if not state.on_demand:
        return _joined(pieces)
    slabs = [placed.slab for placed in state.paging.slabs(range(page, page + 1), state.carried.base)]
    touched = touched_experts(state, pieces[0].layer) if pieces else frozenset()
    return tuple(p for p, slab in zip(pieces, slabs, strict=True) if slab.holds_any(touched))


def _joined(pieces: tuple[PagePiece, ...]) -> tuple[PagePiece, ...]:
    """Pieces one behind the other on both sides, as one copy."""
    if len(pieces) < 2:
        return pieces
    first, last = pieces[0], pieces[-1]
    return (PagePiece(first.layer, first.start, last.stop, first.pool_start),)


def _sources(state: PassState, page: int, staged: bool) -> list[torch.Tensor]:
    pieces = _pieces(state, page)
    if not staged:
        return [state.memory.experts.host_bytes(p.layer)[p.start : p.stop] for p in pieces]
    buffer = state.memory.staging("weight_stage", page % STAGING_BUFFERS)
    whole = buffer.host((sum(p.stop - p.start for p in pieces),), torch.uint8)
    return list(torch.split(whole, [p.stop - p.start for p in pieces]))


def touched_experts(state: PassState, layer: int) -> frozenset[int]:
    """Experts that the pass's tokens choose in a layer; waits for its router."""
    if layer not in state.touched:
        chosen = [routed.experts for routed in state.routed.values() if routed.experts is not None]
        found = torch.unique(torch.cat([experts.reshape(-1) for experts in chosen]))
        state.touched[layer] = frozenset(found.tolist())
    return state.touched[layer]


def dense_fetch(state: PassState, index: int, task: Task) -> None:
    """A layer's other weights, this pass's or the next one's first."""
    ahead = state.memory.config.num_layers + 1
    state.memory.dense.fetch(ahead if task.work.ahead else task.layer)
    if task.work.ahead:
        state.fetched_ahead.dense = state.device.mark()


def head_fetch(state: PassState, index: int, task: Task) -> None:
    """The LM head."""
    state.memory.dense.fetch(state.memory.config.num_layers)

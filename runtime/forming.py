"""From the sequences in flight to the micro-batches of a pass."""

import math

import numpy as np

from hrm.schedule.slice import MicroBatch, PassSlice, balanced_sizes, interleave
from hrm.spec.policy import Policy
from runtime.batch import Batch, Piece, Rows
from runtime.sequences import SequenceTable, Slots

NO_SHARE = 1e-9


def form_batch(table: SequenceTable, policy: Policy) -> Batch:
    """Everybody in flight: those with their prompt in the cache decode, the others are prefilled."""
    decoding = [(_seen(rows, table), rows) for rows in _decoding(table, policy)]
    prefill = [(_chunk(rows, table), rows) for rows in _chunks(table, policy)]
    by_id = {id(mb): rows for mb, rows in (*decoding, *prefill)}
    ordered = interleave(tuple(mb for mb, _ in decoding), tuple(mb for mb, _ in prefill))
    return Batch(tuple(by_id[id(mb)] for mb in ordered), PassSlice(ordered))


def _seen(rows: Rows, table: SequenceTable) -> MicroBatch:
    context = float((table.cached[rows.slots] + 1).mean())
    return MicroBatch(sequences=len(rows.slots), gpu_sequences=rows.gpu_sequences, context_len=context)


def _chunk(rows: Rows, table: SequenceTable) -> MicroBatch:
    lengths = np.array([table.prompt[p.slot] for p in rows.pieces], dtype=np.float64)
    parts = sum((p.stop - p.start) / table.prompt[p.slot] for p in rows.pieces)
    return MicroBatch(
        prompt_tokens=len(rows.tokens),
        prompts=float(parts),
        prompt_len=float(lengths.mean()),
        prompt_len_sq=float((lengths**2).mean()),
    )


def _decoding(table: SequenceTable, policy: Policy) -> list[Rows]:
    """Decoding sequences dealt over the micro-batches, class by class, so that each gets its part of every class."""
    slots = table.decoding
    if not len(slots):
        return []
    on_gpu = table.on_gpu[slots]
    host = slots[~on_gpu]
    streamed = _num_streamed(policy, len(host))
    classes = [slots[on_gpu], host[:streamed], host[streamed:]]
    parts = min(policy.num_micro_batches, len(slots))
    dealt = [_deal(members[np.argsort(-table.cached[members], kind="stable")], parts) for members in classes]
    # the class that comes next begins where the one before ended, so that sizes differ by at most one
    found, offset = [[np.zeros(0, np.int64)] * 3 for _ in range(parts)], 0
    for c, members in enumerate(dealt):
        for j, chosen in enumerate(members):
            found[(j + offset) % parts][c] = chosen
        offset += len(classes[c])
    return [_decode_rows(three, table) for three in found]


def _deal(members: Slots, parts: int) -> list[Slots]:
    return [members[j::parts] for j in range(parts)]


def _num_streamed(policy: Policy, on_host: int) -> int:
    """How many of the sequences whose K, V lie in CPU memory are attended on the GPU."""
    more = policy.attention_on_gpu - policy.kv_on_gpu
    if more <= NO_SHARE or policy.kv_on_gpu >= 1:
        return 0
    return round(more / (1 - policy.kv_on_gpu) * on_host)


def _decode_rows(classes: list[Slots], table: SequenceTable) -> Rows:
    slots = np.concatenate(classes)
    return Rows(slots, len(classes[0]), len(classes[1]), (), table.last[slots], table.cached[slots])


def _chunks(table: SequenceTable, policy: Policy) -> list[Rows]:
    """Prompts one after the other in equal chunks of at most `prefill_chunk_tokens`; a chunk may end in a prompt."""
    slots = table.entering
    if not len(slots):
        return []
    total = int(table.prompt[slots].sum())
    sizes = balanced_sizes(total, math.ceil(total / policy.prefill_chunk_tokens))
    prompts = [(int(slot), 0, int(table.prompt[slot])) for slot in slots]
    return [_prefill_rows(_take(prompts, size), table) for size in sizes]


def _take(prompts: list[tuple[int, int, int]], size: int) -> list[Piece]:
    """The next `size` tokens of the prompts, which are used up from the front."""
    pieces, row = [], 0
    while row < size:
        slot, start, end = prompts[0]
        stop = min(end, start + size - row)
        pieces.append(Piece(slot, start, stop, row, stop == end))
        row += stop - start
        if stop == end:
            prompts.pop(0)
        else:
            prompts[0] = (slot, stop, end)
    return pieces


def _prefill_rows(pieces: list[Piece], table: SequenceTable) -> Rows:
    tokens: list[int] = []
    positions = []
    for piece in pieces:
        request = table.requests[piece.slot]
        assert request is not None
        tokens += request.prompt[piece.start : piece.stop]
        positions.append(np.arange(piece.start, piece.stop))
    return Rows(np.zeros(0, np.int64), 0, 0, tuple(pieces), np.array(tokens, np.int64), np.concatenate(positions))

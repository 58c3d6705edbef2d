"""Index tables of a pass's micro-batches: where their K, V lie, which rows attend together, which rows yield tokens."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.batch import Batch, Piece, Rows
from runtime.kernels.gpu_attention import Masks, PromptGroup
from runtime.kernels.sampling import Draw
from runtime.memory.kv_cache import BLOCK
from runtime.memory.staging import Staging, Upload, view_of
from runtime.sequences import SequenceTable
from runtime.table_arrays import (
    Indices,
    group_arrays,
    last_token,
    padded_table,
    piece_homes,
    similar_groups,
    staged_blocks,
)


@dataclass(frozen=True)
class DecodeTables:
    """Of a decoding micro-batch's sequences, classes as in `Rows`.

    gpu_lengths: [resident + streamed]; gpu_blocks: how many blocks each of these has; resident_table, staged_table:
    blocks in the GPU's pool [resident, most], and in the staging buffer [streamed, most]; fetched: blocks of the host
    pool in order of staging [blocks]; resident_home: block and offset of the new token, [2, resident]. On the CPU:
    cpu_table [cpu, most] int32, cpu_lengths [cpu] int32; store: block and offset of the streamed sequences' new
    token, [2, streamed]. Masks are made by the first layer.
    """

    gpu_lengths: Tensor
    gpu_blocks: tuple[int, ...]
    resident_table: Tensor
    resident_home: Tensor
    staged_table: Tensor
    fetched: Tensor
    fetched_host: Tensor
    store: Tensor
    cpu_table: Tensor
    cpu_lengths: Tensor
    resident_masks: Masks = field(default_factory=dict)
    staged_masks: Masks = field(default_factory=dict)


@dataclass(frozen=True)
class PrefillTables:
    """Of a chunk of prompts. groups: whole prompts; parts: pieces of longer ones. For each pool, the rows whose K, V it
    takes and their block and offset: gpu on the device [3, tokens], host on the CPU, rows on the device too.
    borders: rows at which pieces begin, and the chunk's tokens, [pieces + 1]; longest: of the pieces, tokens.
    """

    groups: tuple[PromptGroup, ...]
    parts: tuple[Piece, ...]
    borders: Tensor
    longest: int
    gpu: Tensor
    host: Tensor
    host_rows: Tensor


@dataclass(frozen=True)
class RowTables:
    """Of one micro-batch, on the device: positions [T], the rows that yield tokens, and block and offset of every token
    whose K, V go to the host's pool, [2, tokens].
    """

    positions: Tensor
    logit_rows: Tensor
    host_homes: Tensor
    draw: Draw | None
    decode: DecodeTables | None
    prefill: PrefillTables | None


def make_tables(
    batch: Batch, table: SequenceTable, staging: Staging, device: torch.device, ragged: bool
) -> list[RowTables]:
    """Tables of all micro-batches; `table` already counts the pass's tokens as cached.

    ragged: prompts attend one behind the other, and need no groups of similar length.
    """
    upload = Upload()
    drafts = [_Draft(rows, table, upload, ragged) for rows in batch.rows]
    sent = upload.send(staging, device)
    return [draft.finish(sent) for draft in drafts]


class _Draft:
    """Tables of one micro-batch before its arrays are on the device."""

    def __init__(self, rows: Rows, table: SequenceTable, upload: Upload, ragged: bool) -> None:
        self.rows, self.table, self.upload, self.ragged = rows, table, upload, ragged
        self.positions = upload.add(rows.positions)
        self.logits = upload.add(np.array(rows.logit_rows, np.int64))
        self.draw = self._draw(np.array(rows.logit_slots, np.int64))
        if rows.is_prefill:
            self._prefill()
        else:
            self._decode()

    def _draw(self, slots: Indices) -> list[tuple[int, tuple[int, ...]]] | None:
        """Where how to choose tokens lies; None where all rows are greedy."""
        table = self.table
        if not (table.temperature[slots] > 0).any():
            return None
        reals = (table.temperature[slots].view(np.int64), table.top_p[slots].view(np.int64))
        return [self.upload.add(array) for array in (*reals, table.seed[slots], table.made[slots])]

    def _decode(self) -> None:
        rows, add = self.rows, self.upload.add
        resident, streamed, on_cpu = np.split(rows.slots, [rows.resident, rows.gpu_sequences])
        lengths = self.table.cached
        attended = lengths[rows.slots[: rows.gpu_sequences]]
        self.gpu_lengths, self.gpu_blocks = add(attended), tuple((-(-attended // BLOCK)).tolist())
        self.resident_table = add(padded_table(self.table, resident))
        self.resident_home = add(last_token(self.table, resident))
        counts = -(-lengths[streamed] // BLOCK)
        most = int(counts.max(initial=0))
        self.staged_table = add(staged_blocks(counts, most))
        blocks = np.arange(most) < counts[:, None]
        self.fetched_host = self.table.table[streamed, :most][blocks].astype(np.int64)
        self.fetched = add(self.fetched_host)
        self.store = last_token(self.table, streamed)
        self.host_homes = add(self.store)
        self.on_cpu = on_cpu

    def _prefill(self) -> None:
        whole = [] if self.ragged else [p for p in self.rows.pieces if p.start == 0 and p.last]
        self.parts = tuple(p for p in self.rows.pieces if p.start > 0 or not p.last)
        self.groups = [
            [self.upload.add(a) for a in group_arrays(group)]
            for group in similar_groups(sorted(whole, key=lambda p: p.stop))
        ]
        self.borders = self.upload.add(np.array([p.row for p in self.rows.pieces] + [len(self.rows.tokens)], np.int64))
        homes = [piece_homes(self.table, piece) for piece in self.rows.pieces]
        on_gpu = [bool(self.table.on_gpu[piece.slot]) for piece in self.rows.pieces]
        empty = [np.zeros((3, 0), np.int64)]
        host = np.concatenate(empty + [h for h, gpu in zip(homes, on_gpu, strict=True) if not gpu], axis=1)
        gpu = np.concatenate(empty + [h for h, gpu in zip(homes, on_gpu, strict=True) if gpu], axis=1)
        self.gpu_homes, self.host = self.upload.add(gpu), host
        self.host_rows, self.host_homes = self.upload.add(host[0]), self.upload.add(host[1:])

    def finish(self, sent: Tensor) -> RowTables:
        """With the arrays where they lie on the device."""
        homes = [view_of(sent, place) for place in (self.positions, self.logits, self.host_homes)]
        shared = (homes[0], homes[1], homes[2], _view_draw(sent, self.draw))
        if self.rows.is_prefill:
            groups = tuple(PromptGroup(*(view_of(sent, place) for place in group)) for group in self.groups)
            gpu, rows = view_of(sent, self.gpu_homes), view_of(sent, self.host_rows)
            borders, longest = view_of(sent, self.borders), max(p.stop - p.start for p in self.rows.pieces)
            prefill = PrefillTables(groups, self.parts, borders, longest, gpu, torch.from_numpy(self.host), rows)
            return RowTables(*shared, None, prefill)
        longest = int(self.table.cached[self.on_cpu].max(initial=0))
        decode = DecodeTables(
            gpu_lengths=view_of(sent, self.gpu_lengths),
            gpu_blocks=self.gpu_blocks,
            resident_table=view_of(sent, self.resident_table),
            resident_home=view_of(sent, self.resident_home),
            staged_table=view_of(sent, self.staged_table),
            fetched=view_of(sent, self.fetched),
            fetched_host=torch.from_numpy(self.fetched_host),
            store=torch.from_numpy(self.store),
            cpu_table=torch.from_numpy(self.table.table[self.on_cpu, : -(-longest // BLOCK)].copy()),
            cpu_lengths=torch.from_numpy(self.table.cached[self.on_cpu].astype(np.int32)),
        )
        return RowTables(*shared, decode, None)


def _view_draw(sent: Tensor, places: list[tuple[int, tuple[int, ...]]] | None) -> Draw | None:
    if places is None:
        return None
    temperature, top_p, seed, step = (view_of(sent, place) for place in places)
    return Draw(temperature.view(torch.float64), top_p.view(torch.float64), seed, step)

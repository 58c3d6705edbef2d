"""What one pass carries: micro-batches of decoding sequences and chunks of prompts, as slots and positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.schedule.slice import PassSlice
from runtime.sequences import Slots


@dataclass(frozen=True)
class Piece:
    """Tokens [start, stop) of one prompt in a chunk, at rows [row, row + stop - start) of it."""

    slot: int
    start: int
    stop: int
    row: int
    last: bool  # the prompt ends here


@dataclass(frozen=True)
class Rows:
    """One micro-batch of a pass, B decoding sequences or T prompt tokens.

    slots: of the decoding sequences: `resident` ones (K, V on the GPU), then `streamed` ones (attended on the GPU, K, V
    in CPU memory), then those that the CPU attends. pieces: of prompts, where it decodes none.
    tokens, positions: [T] ids and positions of what goes through the layers.
    """

    slots: Slots
    resident: int
    streamed: int
    pieces: tuple[Piece, ...]
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def gpu_sequences(self) -> int:
        """Sequences attended on the GPU."""
        return self.resident + self.streamed

    @property
    def is_prefill(self) -> bool:
        """Whether it carries prompts."""
        return bool(self.pieces)

    @property
    def logit_rows(self) -> list[int]:
        """Rows whose logits choose a token."""
        if not self.is_prefill:
            return list(range(len(self.slots)))
        return [p.row + p.stop - p.start - 1 for p in self.pieces if p.last]

    @property
    def logit_slots(self) -> list[int]:
        """Slots that the logits belong to."""
        return [p.slot for p in self.pieces if p.last] if self.is_prefill else [int(s) for s in self.slots]


@dataclass(frozen=True)
class Batch:
    """All micro-batches of a pass, and the same as the schedule sees them."""

    rows: tuple[Rows, ...]
    slice: PassSlice

    @property
    def structure(self) -> tuple[object, ...]:
        """What the order of tasks depends on."""
        return tuple(
            (mb.is_prefill, mb.gpu_sequences > 0, mb.sequences > mb.gpu_sequences) for mb in self.slice.micro_batches
        )

"""Units: more sequences in flight than a pass takes, dealt to passes by the experts that they are predicted to touch.

ExpertFlow (arXiv 2410.17954, token scheduling): two adjacent batches are merged and split anew. Keys and values need
not move: each sequence's blocks stay where they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.spec.policy import Policy
from runtime.experts.token_scheduler import regroup
from runtime.sequences import SequenceTable, Slots

PAIR = 2  # batches that are merged
Paths = Callable[[SequenceTable, Slots], NDArray[np.bool_]]
"""(table, slots) -> predicted paths [B, L, E] of the slots' latest tokens."""


@dataclass
class Units:
    """Two batches of at most `size` sequences each, of which one runs in every pass.

    paths: predicts, so that the two are split anew each time both have run; None: they stay as they came.
    """

    size: int
    paths: Paths | None = None
    _turns: list[Slots] = field(default_factory=list)

    def admission(self, policy: Policy) -> Policy:
        """The policy by which requests are admitted and memory is planned: both batches."""
        return policy.model_copy(update={"batch_size": PAIR * policy.batch_size})

    def take_turn(self, table: SequenceTable) -> None:
        """Says who sits the next pass out: the other unit; nobody while prompts enter."""
        table.sits_out[:] = False
        if len(table.entering):
            self._turns = []
            return
        decoding = table.decoding  # of both units: nobody sits out now
        waiting = [turn[np.isin(turn, decoding)] for turn in self._turns]
        self._turns = [turn for turn in waiting if len(turn)] or self._deal(table, decoding)
        runs = self._turns.pop(0)
        table.sits_out[np.setdiff1d(decoding, runs)] = True

    def _deal(self, table: SequenceTable, slots: Slots) -> list[Slots]:
        """Two batches as equal as can be, or one where all fit."""
        if len(slots) <= self.size:
            return [slots]
        first = -(-len(slots) // PAIR)
        if self.paths is None:
            return [slots[:first], slots[first:]]
        a, b = regroup(self.paths(table, slots), (first, len(slots) - first))
        return [slots[a], slots[b]]

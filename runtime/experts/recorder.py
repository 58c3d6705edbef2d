"""Records which experts a model's routers choose while it runs, as a `RoutingTrace`.

T tokens of a micro-batch, L MoE layers, k top_k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.errors import WorkloadError
from hrm.predict.routing_checks import moe_kind
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.model import ModelSpec
from runtime.batch import Batch, Rows
from runtime.models.family import Routed
from runtime.requests.request import Request
from runtime.sequences import SequenceTable

Numbers = NDArray[np.int64]


@dataclass
class PassRouting:
    """What the routers of one pass chose, kept small on the device: per micro-batch and MoE layer [T, 2 k] int16."""

    layers: dict[int, list[Tensor]] = field(default_factory=dict)

    def keep(self, micro_batch: int, routed: Routed) -> None:
        """Experts, and the bits of their float16 weights; nothing of a dense layer. Does not wait for the device."""
        if routed.experts is not None and routed.weights is not None:
            weights = routed.weights.to(torch.float16).view(torch.int16)
            packed = torch.cat((routed.experts.to(torch.int16), weights), dim=-1)
            self.layers.setdefault(micro_batch, []).append(packed)

    def collect(self) -> NDArray[np.int16]:
        """All micro-batches one after the other, [tokens, L, 2 k], in one copy; waits for the device."""
        parts = [torch.stack(self.layers[j], dim=1) for j in sorted(self.layers)]
        found: NDArray[np.int16] = torch.cat(parts).cpu().numpy()
        return found


class RoutingRecorder:
    """Given to an `Engine`, it keeps the routing of every token that passes through the model.

    Prompts are numbered as they are given to `Engine.generate`, from one call to the next, refused ones counted though
    they never appear; or as `numbers` says, by request id. Gate weights are kept as float16. The last token that a
    request generates is never an input, so it has no row. A request that is left half-way keeps the rows it has.
    """

    def __init__(self, numbers: Mapping[str, int] | None = None) -> None:
        self.numbers = numbers
        self._model: ModelSpec | None = None
        self._waiting: dict[int, list[int]] = {}
        self._slots: dict[int, int] = {}
        self._rows: list[Numbers] = []  # of a pass: prompt, position, step, token, [4, tokens]
        self._packed: list[NDArray[np.int16]] = []
        self._asked = 0

    def bind(self, model: ModelSpec) -> None:
        """Says whose routers these are.

        Raises:
            WorkloadError: a model without MoE layers, with kinds of them that differ, or another than before.
        """
        moe_kind(model, "routing recorder")
        if self._model is not None and self._model != model:
            raise WorkloadError(f"routing recorder: holds the routing of {self._model.name}; take a new one")
        self._model = model

    def begin(self, requests: Sequence[Request]) -> None:
        """Numbers the requests of a call; what an earlier one has left unfinished is over."""
        self._waiting, self._slots = {}, {}
        for place, request in enumerate(requests, self._asked):
            number = place if self.numbers is None else self.numbers[request.request_id]
            self._waiting.setdefault(id(request), []).append(number)
        self._asked += len(requests)

    def add(self, batch: Batch, table: SequenceTable, routing: PassRouting) -> None:
        """Takes in a pass that is through; `table` does not count its tokens as made yet."""
        self._rows += [self._describe(rows, table) for rows in batch.rows]
        self._packed.append(routing.collect())

    def trace(self) -> RoutingTrace | None:
        """All rows by prompt, then position; None where no token has passed yet."""
        if not self._packed or self._model is None:
            return None
        rows, packed = np.concatenate(self._rows, axis=1), np.concatenate(self._packed)
        order = np.lexsort((rows[1], rows[0]))
        (prompt, _, step, tokens), packed = rows[:, order].astype(np.int32), packed[order]
        num_experts, top_k = moe_kind(self._model, "routing recorder")
        weights: NDArray[Any] = np.ascontiguousarray(packed[..., top_k:]).view(np.float16)
        return RoutingTrace(self._model.name, num_experts, packed[..., :top_k], prompt, step, weights, tokens)

    def _describe(self, rows: Rows, table: SequenceTable) -> Numbers:
        """Prompt number, position, step and id of a micro-batch's tokens, [4, T]."""
        if not rows.is_prefill:
            prompt = np.array([self._slots[int(slot)] for slot in rows.slots], np.int64)
            return np.stack((prompt, rows.positions, table.made[rows.slots], rows.tokens))
        for piece in rows.pieces:
            if piece.start == 0:
                self._slots[piece.slot] = self._number(table.requests[piece.slot])
        numbers = [self._slots[piece.slot] for piece in rows.pieces]
        prompt = np.repeat(numbers, [piece.stop - piece.start for piece in rows.pieces])
        return np.stack((prompt, rows.positions, np.zeros_like(rows.positions), rows.tokens))

    def _number(self, request: Request | None) -> int:
        """Of one that enters; the same request asked twice gets its numbers in turn."""
        return self._waiting[id(request)].pop(0)

"""Recorded routing in the place of a model's routers: for models whose weights are random, where speed is measured.

T tokens, L MoE layers, k top_k, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.errors import WorkloadError
from hrm.predict.path_predictions import UNKNOWN, ExpectedDemand, PathPredictions, joined
from hrm.predict.routing_trace import RoutingTrace
from runtime.batch import Batch, Rows
from runtime.experts.expected_demand import expected_demand
from runtime.experts.predictor_metrics import top_k_mask
from runtime.models.config import ModelConfig
from runtime.requests.request import Request
from runtime.sequences import SequenceTable, Slots


@dataclass(frozen=True)
class RoutingReplay:
    """By request id and position: experts [S, L, k], and predictions of them, where there are any.

    A request's tokens are its own; only their experts come from here, so it must not be longer than what is recorded.
    """

    experts: Mapping[str, NDArray[np.int64]]
    predictions: Mapping[str, PathPredictions] | None = None

    def check(self, config: ModelConfig) -> None:
        """Refuses routing that the model cannot follow.

        Raises:
            WorkloadError: other layers, experts or top_k.
        """
        shape = sum(config.moe_layers), config.top_k
        for name, rows in self.experts.items():
            if rows.shape[1:] != shape or rows.max(initial=0) >= config.num_experts:
                raise WorkloadError(
                    f"routing replay: request {name} has {rows.shape[1]} layers, {rows.shape[2]} experts a token and "
                    f"numbers up to {rows.max(initial=0)}; {config.name} has {shape[0]} MoE layers, top_k {shape[1]} "
                    f"and {config.num_experts} experts"
                )

    def rows(self, rows: Rows, table: SequenceTable) -> NDArray[np.int64]:
        """What the tokens of a micro-batch choose, [T, L, k].

        Raises:
            WorkloadError: a request that is not recorded, or not as far.
        """
        slots = rows.slots if not rows.pieces else np.repeat([p.slot for p in rows.pieces], _sizes(rows))
        found = [self._at(table, int(slot), int(at)) for slot, at in zip(slots, rows.positions, strict=True)]
        return np.stack(found)

    def on_device(self, batch: Batch, table: SequenceTable, device: torch.device) -> dict[int, Tensor]:
        """The same of every micro-batch of a pass."""
        return {j: torch.from_numpy(self.rows(rows, table)).to(device) for j, rows in enumerate(batch.rows)}

    def __call__(self, batch: Batch, table: SequenceTable) -> ExpectedDemand:
        """What is predicted of a decode pass and of the next one."""
        if self.predictions is None:
            return UNKNOWN
        own = joined([self._predicted(table, rows.slots, rows.positions) for rows in batch.rows])
        return expected_demand(own, self._waiting, table)

    def paths(self, table: SequenceTable, slots: Slots) -> NDArray[np.bool_]:
        """Predicted paths of the slots' latest tokens, [B, L, E].

        Raises:
            WorkloadError: there are no predictions.
        """
        if self.predictions is None:
            raise WorkloadError("routing replay: has no predictions to regroup by; give them, or run without units")
        top_k = next(iter(self.experts.values())).shape[2]
        return top_k_mask(self._waiting(table, slots).now.astype(np.float32), top_k)

    def _waiting(self, table: SequenceTable, slots: Slots) -> PathPredictions:
        """Of the latest tokens of slots that no pass has taken on yet."""
        return self._predicted(table, slots, table.cached[slots])

    def _predicted(self, table: SequenceTable, slots: Slots, positions: Slots) -> PathPredictions:
        """Of the tokens at these positions, whose experts the recording holds in the same rows."""
        assert self.predictions is not None
        both = zip(slots.tolist(), positions.tolist(), strict=True)
        return joined([self.predictions[_name(table, slot)].rows(slice(at, at + 1)) for slot, at in both])

    def _at(self, table: SequenceTable, slot: int, position: int) -> NDArray[np.int64]:
        name = _name(table, slot)
        recorded = self.experts.get(name)
        if recorded is None or position >= len(recorded):
            held = "nothing" if recorded is None else f"{len(recorded)} tokens"
            raise WorkloadError(
                f"routing replay: holds {held} of request {name}, whose token {position} is next; record longer, or "
                "generate less"
            )
        found: NDArray[np.int64] = recorded[position]
        return found


def _sizes(rows: Rows) -> list[int]:
    return [piece.stop - piece.start for piece in rows.pieces]


def _name(table: SequenceTable, slot: int) -> str:
    request: Request | None = table.requests[slot]
    assert request is not None
    return request.request_id


def replay_of(trace: RoutingTrace, predictions: PathPredictions | None = None) -> RoutingReplay:
    """Of a trace's prompts, by their numbers as request ids. predictions: row by row of the trace."""
    order = np.argsort(trace.prompt, kind="stable")
    names, starts = np.unique(trace.prompt[order], return_index=True)
    parts = [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    by_name = {str(name): rows for name, rows in zip(names.tolist(), parts, strict=True)}
    experts = {name: trace.experts[rows].astype(np.int64) for name, rows in by_name.items()}
    predicted = None if predictions is None else {name: predictions.rows(rows) for name, rows in by_name.items()}
    return RoutingReplay(experts, predicted)

"""What the next pass will need, predicted before it begins. B sequences, L MoE layers, E experts, k top_k."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.predict.path_predictions import ExpectedDemand, PathPredictions, joined
from runtime.batch import Batch
from runtime.experts.expected_demand import expected_demand
from runtime.experts.last_paths import LastPaths, last_paths
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_metrics import top_k_mask
from runtime.requests.request import Request
from runtime.sequences import SequenceTable, Slots


@dataclass
class PathForecast:
    """Predicts the routing paths of sequences' latest tokens; each is predicted once, whoever asks first."""

    predictor: RoutingPredictor
    _known: dict[int, tuple[Request, int, PathPredictions]] = field(default_factory=dict)  # by slot; tokens made
    _predict: LastPaths = field(init=False)

    def __post_init__(self) -> None:
        self._predict = last_paths(self.predictor)

    def __call__(self, batch: Batch, table: SequenceTable) -> ExpectedDemand:
        """What the tokens of a decode pass will choose, and those of the pass after it."""
        slots = np.concatenate([rows.slots for rows in batch.rows])
        return expected_demand(self.predictions(table, slots), self.predictions, table)

    def predictions(self, table: SequenceTable, slots: Slots) -> PathPredictions:
        """Of each slot's latest token, [B, L, E]."""
        missing = [slot for slot in slots.tolist() if not self._knows(table, slot)]
        if missing:
            found = self._predict([_tokens(table, slot) for slot in missing])
            for i, slot in enumerate(missing):
                self._known[slot] = (_request(table, slot), int(table.made[slot]), found.rows(slice(i, i + 1)))
        return joined([self._known[slot][2] for slot in slots.tolist()])

    def _knows(self, table: SequenceTable, slot: int) -> bool:
        """Whether the latest prediction of a slot is of its latest token."""
        request, made, _ = self._known.get(slot, (None, 0, None))
        return request is _request(table, slot) and made == table.made[slot]

    def paths(self, table: SequenceTable, slots: Slots) -> NDArray[np.bool_]:
        """The k most probable experts of each layer, [B, L, E]."""
        return top_k_mask(self.predictions(table, slots).now, self.predictor.target.top_k)


def _request(table: SequenceTable, slot: int) -> Request:
    request = table.requests[slot]
    assert request is not None
    return request


def _tokens(table: SequenceTable, slot: int) -> NDArray[np.int64]:
    """Prompt and what has been generated, the token that comes next last."""
    generated = table.generated[slot, : table.made[slot]]
    return np.concatenate((np.array(_request(table, slot).prompt, np.int64), generated.astype(np.int64)))

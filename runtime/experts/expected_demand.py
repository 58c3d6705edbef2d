"""What a pass and the one after it will choose, by predictions for the sequences in flight."""

from collections.abc import Callable

from hrm.predict.path_predictions import ExpectedDemand, PathPredictions
from runtime.sequences import SequenceTable, Slots

Predict = Callable[[SequenceTable, Slots], PathPredictions]
"""(table, slots that sit a pass out) -> predictions for their latest tokens, [B, L, E]."""


def expected_demand(own: PathPredictions, predict: Predict, table: SequenceTable) -> ExpectedDemand:
    """own: of the tokens of the decode pass that begins. Where another batch runs next, its tokens are known already,
    and tell more than a guess of what follows the tokens of this one.
    """
    demand = own.of_pass(slice(None))
    if not len(table.waiting):
        return demand
    return ExpectedDemand(demand.now, predict(table, table.waiting).of_pass(slice(None)).now)

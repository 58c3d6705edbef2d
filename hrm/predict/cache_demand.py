"""How likely experts are to be used: a pass's prediction mixed with how often they have been used."""

import numpy as np
from numpy.typing import NDArray

RATE = 0.1  # weight of the newest pass in running means; 0.03 to 0.3 differ by up to 2.5 points of hit rate

Floats = NDArray[np.float64]


class DemandEstimate:
    """frequency [layers, experts]: share of passes that use an expert, the newer the more it counts.

    A layer's prediction is mixed with its frequency, in the shares that would have been best in the last passes (least
    squares of used - frequency on prediction - frequency). Calibrated predictions are left as they are; biased ones,
    as of tokens or domains that the predictor has not seen, do no harm.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.frequency: Floats = np.zeros((num_layers, num_experts))
        self._lead: Floats | None = None  # of the pass's prediction over the frequency
        self._won: Floats = np.zeros(num_layers)
        self._had: Floats = np.zeros(num_layers)
        self.passes = 0

    @property
    def rate(self) -> float:
        """Weight of the pass under way: plain means at first."""
        return max(RATE, 1 / max(1, self.passes))

    def begin_pass(self, prediction: Floats | None) -> Floats:
        """Probabilities of use in the pass [layers, experts]."""
        self.passes += 1
        self._lead = None if prediction is None else prediction - self.frequency
        if self._lead is None:
            return self.frequency
        share = np.divide(self._won, self._had, out=np.ones_like(self._won), where=self._had > 0)
        mixed: Floats = self.frequency + np.clip(share, 0.0, 1.0)[:, None] * self._lead
        return mixed

    def note(self, layer: int, touched: NDArray[np.int64]) -> Floats:
        """Takes in what a layer's gate has chosen; the layer's new frequency [experts]."""
        frequency: Floats = self.frequency[layer]
        if self._lead is not None:
            lead = self._lead[layer]
            self._won[layer] += lead[touched].sum() - lead @ frequency - RATE * self._won[layer]
            self._had[layer] += lead @ lead - RATE * self._had[layer]
        frequency *= 1 - self.rate
        frequency[touched] += self.rate
        return frequency

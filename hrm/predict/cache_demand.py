"""How likely experts are to be used: predictions mixed with how often they have been used."""

import numpy as np
from numpy.typing import NDArray

RATE = 0.1  # weight of the newest pass in running means; 0.03 to 0.3 differ by up to 2.5 points of hit rate

Floats = NDArray[np.float64]


class _Mixture:
    """Predictions [layers, experts] mixed with frequencies, in the shares that would have been best in the last passes
    (least squares of used - frequency on prediction - frequency, layer by layer).

    Calibrated predictions are left as they are; biased ones, as of tokens or domains that the predictor has not seen,
    do no harm.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._lead: Floats = np.zeros((num_layers, num_experts))  # of what is predicted over the frequency
        self._won: Floats = np.zeros(num_layers)
        self._had: Floats = np.zeros(num_layers)

    def mixed(self, prediction: Floats, frequency: Floats, layers: slice) -> Floats:
        """Of some layers; not yet to be judged by."""
        share = np.divide(self._won, self._had, out=np.ones_like(self._won), where=self._had > 0)[layers]
        found: Floats = frequency + np.clip(share, 0.0, 1.0)[:, None] * (prediction - frequency)
        return found

    def expect(self, prediction: Floats | None, frequency: Floats, layers: slice) -> None:
        """What the next `judge` of these layers is of."""
        self._lead[layers] = 0.0 if prediction is None else prediction - frequency

    def judge(self, layer: int, touched: NDArray[np.int64], frequency: Floats) -> None:
        """Sets what was expected of a layer against what its gate has chosen."""
        lead = self._lead[layer]
        self._won[layer] += lead[touched].sum() - lead @ frequency - RATE * self._won[layer]
        self._had[layer] += lead @ lead - RATE * self._had[layer]


class DemandEstimate:
    """frequency [layers, experts]: share of passes that use an expert, the newer the more it counts.

    again [layers, experts]: probability of use in the pass after the one under way; what is predicted of it mixed with
    the frequency, which stands alone where nothing is predicted.
    """

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.frequency: Floats = np.zeros((num_layers, num_experts))
        self.again: Floats = np.zeros((num_layers, num_experts))
        self._now, self._later = _Mixture(num_layers, num_experts), _Mixture(num_layers, num_experts)
        self._following: Floats | None = None
        self.passes = 0

    @property
    def rate(self) -> float:
        """Weight of the pass under way: plain means at first."""
        return max(RATE, 1 / max(1, self.passes))

    def begin_pass(self, prediction: Floats | None, following: Floats | None) -> Floats:
        """Probabilities of use in the pass [layers, experts]; predictions of it and of the next one, or None."""
        self.passes += 1
        every, frequency = slice(None), self.frequency
        self._following = following
        self.again[:] = frequency if following is None else self._later.mixed(following, frequency, every)
        expected = frequency if prediction is None else self._now.mixed(prediction, frequency, every)
        self._now.expect(prediction, frequency, every)
        return expected

    def note(self, layer: int, touched: NDArray[np.int64]) -> Floats:
        """Takes in what a layer's gate has chosen; how likely its experts are to be used again [experts]."""
        frequency: Floats = self.frequency[layer]
        self._now.judge(layer, touched, frequency)
        self._later.judge(layer, touched, frequency)  # of the pass before
        frequency *= 1 - self.rate
        frequency[touched] += self.rate
        here, following = slice(layer, layer + 1), self._following
        ahead = None if following is None else following[here]
        self._later.expect(ahead, frequency, here)
        self.again[here] = frequency if ahead is None else self._later.mixed(ahead, frequency[None], here)
        found: Floats = self.again[layer]
        return found

"""How unevenly the experts of a layer are used."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing import MAX_EXPONENT, inclusion_probabilities

TOP_SHARES = (0.10, 0.25, 0.50)  # of the experts, the most used first
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 24  # of the search for an exponent: MAX_EXPONENT * _GOLDEN^24 = 2e-4


@dataclass(frozen=True)
class LayerSkew:
    """Of one layer's choices. hottest: the most used expert; peak: how many times an even share it gets.

    top: share of the choices that go to the most used 10, 25 and 50 % of the experts (of a fraction of an expert, that
    fraction). entropy: of the choices over log E; 1 is even. zipf_exponent, zipf_misfit: see `fit_zipf`.
    """

    hottest: int
    peak: float
    top: tuple[float, ...]
    entropy: float
    zipf_exponent: float
    zipf_misfit: float


def layer_skew(frequency: NDArray[np.float64]) -> LayerSkew:
    """Skew of a layer's `choice_frequency` [E]."""
    experts, top_k = len(frequency), round(float(frequency.sum()))
    shares = frequency / frequency.sum()
    ranked = np.sort(shares)[::-1]
    used = shares[shares > 0]
    entropy = float(-(used * np.log(used)).sum()) / math.log(experts) if experts > 1 else 1.0
    top = tuple(float((np.clip(top * experts - np.arange(experts), 0, 1) * ranked).sum()) for top in TOP_SHARES)
    hottest = int(shares.argmax())
    return LayerSkew(hottest, float(shares[hottest]) * experts, top, entropy, *fit_zipf(ranked, top_k))


def fit_zipf(ranked: NDArray[np.float64], top_k: int) -> tuple[float, float]:
    """The exponent under which a layer's choices are most likely, and the share of choices that it puts elsewhere.

    ranked: shares of the choices, falling [E]. Experts are drawn as in `inclusion_probabilities`, so the exponent is
    one for `--routing zipf:S`. What the fit leaves out: any other shape than rank^-S (the misfit, half the sum of
    absolute differences, says how far it is off), which experts are hot, dependence between tokens, layers and time;
    and it ranks experts by the same counts, so that chance alone gives short traces an exponent a little above 0.
    """
    low, high = 0.0, MAX_EXPONENT
    for _ in range(_STEPS):  # golden section; the likelihood has one peak
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if _likelihood(ranked, top_k, left) >= _likelihood(ranked, top_k, right):
            high = right
        else:
            low = left
    exponent = (low + high) / 2 if high > low and low > 0 else 0.0
    return exponent, float(np.abs(ranked - zipf_shares(len(ranked), top_k, exponent)).sum()) / 2


def zipf_shares(num_experts: int, top_k: int, exponent: float) -> NDArray[np.float64]:
    """Shares of a layer's choices by rank [E]; they sum to 1."""
    chosen = inclusion_probabilities(num_experts, top_k, exponent)
    shares: NDArray[np.float64] = chosen / chosen.sum()
    return shares


def _likelihood(ranked: NDArray[np.float64], top_k: int, exponent: float) -> float:
    used = ranked > 0
    with np.errstate(divide="ignore"):
        return float((ranked[used] * np.log(zipf_shares(len(ranked), top_k, exponent)[used])).sum())

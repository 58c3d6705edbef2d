"""What an LRU cache of whole experts hits when passes are independent."""

import math

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing import inclusion_probabilities

BISECTIONS = 80
SHORTEST, LONGEST = 1e-9, 1e12  # passes; an expert that is needed more rarely counts as never kept


def lru_hit_rate(num_experts: int, top_k: int, tokens: int, slots: float, exponent: float) -> float:
    """Hit rate of one layer's `slots` under popularity ~ rank^-exponent, tokens independent.

    Che, Tung and Wang (2002): an expert is in the cache if it was touched in the last t passes, with the one t for
    which so many experts are expected as there are slots. Uniform routing: slots / experts.
    """
    with np.errstate(divide="ignore"):  # an expert that every token chooses
        log_absent = tokens * np.log1p(-inclusion_probabilities(num_experts, top_k, exponent))
    touched = -np.expm1(log_absent)
    if slots >= num_experts:
        return 1.0
    resident = _resident(log_absent, _passes(log_absent, slots))
    return float((resident * touched).sum() / touched.sum())


def _passes(log_absent: NDArray[np.float64], slots: float) -> float:
    """Passes t that an expert stays without being touched."""
    low, high = math.log(SHORTEST), math.log(LONGEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _resident(log_absent, math.exp(middle)).sum() < slots else (low, middle)
    return math.exp(high)


def _resident(log_absent: NDArray[np.float64], passes: float) -> NDArray[np.float64]:
    """Probability that an expert was touched in the last `passes` passes."""
    found: NDArray[np.float64] = -np.expm1(passes * log_absent)
    return found

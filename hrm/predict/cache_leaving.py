"""Which of a layer's missed experts are left to the CPU: those that are least worth a copy."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hrm.errors import PolicyError, ScheduleError


def check_leaving(touched: int, tokens: Sequence[int] | None, copied: float) -> None:
    """Raises ScheduleError for tokens of other experts, PolicyError for a share outside [0, 1]."""
    if tokens is not None and len(tokens) != touched:
        raise ScheduleError(f"expert cache: tokens of {len(tokens)} experts, {touched} are touched; give one for each")
    if not 0 <= copied <= 1:
        raise PolicyError(f"expert cache: copied {copied:g} of the missed experts; give a share from 0 to 1")


def left_to_cpu(
    misses: Sequence[int], tokens: Sequence[int], worth: Sequence[float] | NDArray[np.float64], copied: float
) -> tuple[int, ...]:
    """The missed experts that are not copied, in order of their numbers: 1 - copied of them, to the nearest whole.

    A copy takes as long for one token as for many, the CPU only for few: the fewest tokens first, [missed experts]. Of
    equals the least worth to the cache, [experts of the layer]; then the lowest number.
    """
    count = math.floor((1 - copied) * len(misses) + 0.5)
    experts = np.array(misses, np.int64)
    ranked = np.lexsort((experts, np.asarray(worth)[experts], np.asarray(tokens)))
    return tuple(sorted(experts[ranked[:count]].tolist()))

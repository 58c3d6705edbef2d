"""Orders of experts and slots by their worth; ties by number, so that the same calls give the same plans."""

import numpy as np
from numpy.typing import NDArray

_FEW = 24  # so many minima of some thousand values are found faster one by one than by sorting

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


def in_order_of_need(expected: Floats, least: float) -> Places:
    """Numbers (layer * num_experts + expert) of those with at least this probability [L, E].

    Layer after layer, the most probable first.
    """
    layer, expert = np.nonzero(expected >= least)
    order = np.argsort(2.0 * layer - expected[layer, expert], kind="stable")
    numbers: Places = (layer * expected.shape[1] + expert)[order]
    return numbers


def smallest(values: Floats, count: int) -> Places:
    """Places of the `count` smallest values below inf (all, if fewer), ascending; of equals the first."""
    if count <= _FEW:
        values, found = values.copy(), []
        for _ in range(min(count, len(values))):
            found.append(int(values.argmin()))
            values[found[-1]] = np.inf
        return np.array(found, dtype=np.intp)
    if count >= len(values):
        return np.argsort(values, kind="stable")
    candidates = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return candidates[np.argsort(values[candidates], kind="stable")][:count]


def worthier(values: Floats, bars: Floats) -> list[int]:
    """Places of values that, in order, each exceed the next of the ascending bars."""
    first = values[: len(bars)]
    if (first > bars[: len(first)]).all():
        return list(range(len(first)))
    best_left = np.maximum.accumulate(values[::-1])[::-1].tolist()
    taken: list[int] = []
    bar = iter(bars.tolist())
    lowest = next(bar, np.inf)
    for place, value in enumerate(values.tolist()):
        if best_left[place] <= lowest:
            break
        if value > lowest:
            taken.append(place)
            lowest = next(bar, np.inf)
    return taken

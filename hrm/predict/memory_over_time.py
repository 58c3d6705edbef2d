"""GPU memory over the course of a pass: what stays, page slots as they fill and empty, and KV cache in staging."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.layer_rates import Cost
from hrm.predict.prediction import Prediction
from hrm.predict.timeline import Timeline
from hrm.schedule.task import Kind

MOVING = ("page_pool", "kv_staging")


@dataclass(frozen=True)
class MemoryOverTime:
    """Bytes on the GPU, a step function: `bytes_in_use[i]` from `seconds[i]` on. `usable_bytes` is the limit."""

    seconds: NDArray[np.float64]
    bytes_in_use: NDArray[np.float64]
    resident_bytes: float
    usable_bytes: float

    @property
    def peak_bytes(self) -> float:
        """The most in use at any time."""
        return float(self.bytes_in_use.max())


def memory_over_time(timeline: Timeline, costs: list[Cost], prediction: Prediction) -> MemoryOverTime:
    """Resident parts as predicted for the policy, plus every page from its fetch to its last reader's end, and KV cache
    from its fetch to the end of the attention that reads it. Pages of the next pass stay to the end.
    """
    memory = prediction.gpu_memory
    resident = sum(size for name, size in memory.parts.items() if name not in MOVING)
    changes = [*_pages(timeline, costs), *_staged(timeline, costs)]
    if not changes:
        return MemoryOverTime(np.zeros(1), np.array([resident]), resident, memory.usable_bytes)
    at, change = np.array([c[0] for c in changes]), np.array([c[1] for c in changes])
    order = np.lexsort((change, at))  # at one instant, a slot is left before it is taken again
    size = resident + np.cumsum(change[order])
    return MemoryOverTime(at[order], size, resident, memory.usable_bytes)


def _pages(timeline: Timeline, costs: list[Cost]) -> list[tuple[float, float]]:
    """(seconds, bytes) of every page that comes (+) and goes (-)."""
    graph = timeline.graph
    size = [0.0] * (graph.pages.per_pass + graph.pages.ahead)
    comes, goes = dict.fromkeys(range(graph.pages.ahead), 0.0), dict[int, float]()
    for i, task in enumerate(graph.tasks):
        for page in range(*task.work.pages):
            if task.kind == Kind.WEIGHT_FETCH:
                comes[page], size[page] = float(timeline.start[i]), costs[i].bytes
            elif task.kind == Kind.EXPERT_FFN:
                goes[page] = max(goes.get(page, 0.0), float(timeline.end[i]))
    for page in range(graph.pages.ahead):  # as large as when it is fetched for the next pass
        size[page] = size[page] or size[graph.pages.per_pass + page]
    return [(at, size[page]) for page, at in comes.items()] + [(at, -size[page]) for page, at in goes.items()]


def _staged(timeline: Timeline, costs: list[Cost]) -> list[tuple[float, float]]:
    changes, fetched = [], dict[tuple[int, int | None], int]()
    for i, task in enumerate(timeline.graph.tasks):
        place = (task.layer, task.micro_batch)
        if task.kind == Kind.KV_FETCH:
            fetched[place] = i
            changes.append((float(timeline.start[i]), costs[i].bytes))
        elif task.kind == Kind.GPU_ATTENTION and place in fetched:
            changes.append((float(timeline.end[i]), -costs[fetched[place]].bytes))
    return changes

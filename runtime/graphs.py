"""CUDA graphs of calls that come again and again: launching a graph takes the host as long as launching one kernel."""

from collections.abc import Callable, Hashable
from typing import Protocol

import torch


class Calls(Protocol):
    def run(self, key: Hashable, call: Callable[[], None]) -> None:
        """Makes a call that is known by its key."""

    def forget(self, keys: Callable[[Hashable], bool]) -> None:
        """Calls of some keys are not made again."""


class CallGraphs:
    """Records a call's launches when it is made the second time, and from then on replays them.

    A call is known by its key. It uses tensors that stay where they are, and leaves its results in such: what it
    allocates is gone when it returns. All calls are made on one lane, and share the memory of what they allocate.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool: object = None

    def run(self, key: Hashable, call: Callable[[], None]) -> None:
        """Makes the call, or has its launches made."""
        if key not in self._graphs:
            self._graphs[key] = None
            call()
            return
        graph = self._graphs[key]
        if graph is None:
            self._graphs[key] = graph = self._record(call)
        graph.replay()

    def forget(self, keys: Callable[[Hashable], bool]) -> None:
        """Drops the calls of some keys."""
        for key in [key for key in self._graphs if keys(key)]:
            del self._graphs[key]

    def _record(self, call: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Other threads go on meanwhile with what a capture forbids its own."""
        if not any(self._graphs.values()):  # the memory went with the last graph
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # type: ignore[arg-type]
        try:
            call()
        finally:
            graph.capture_end()
        return graph

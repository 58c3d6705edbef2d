"""Decode passes of a routing trace: which of its tokens go through the model together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.routing_trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class DecodePasses:
    """rows: a trace's rows that take part [T]. pass_of: the pass of each [T], counted from 0."""

    rows: NDArray[np.intp]
    pass_of: NDArray[np.integer[Any]]
    num_passes: int

    def batches(self) -> Iterator[NDArray[np.intp]]:
        """The rows of every pass in turn."""
        rows = self.rows[np.argsort(self.pass_of, kind="stable")]
        yield from np.split(rows, np.cumsum(np.bincount(self.pass_of))[:-1])

    def touched(self, trace: RoutingTrace) -> NDArray[np.bool_]:
        """Whether a pass's tokens choose an expert: [passes, MoE layers, experts]."""
        experts = trace.experts[self.rows]
        touched = np.zeros((self.num_passes, experts.shape[1], trace.num_experts), dtype=np.bool_)
        for layer in range(experts.shape[1]):
            touched[self.pass_of[:, None], layer, experts[:, layer]] = True
        return touched


def rows_behind(trace: RoutingTrace) -> NDArray[np.intp]:
    """Of every row, the row of its prompt's next token; -1 for the last of a prompt."""
    order = np.argsort(trace.prompt, kind="stable")
    same = trace.prompt[order][1:] == trace.prompt[order][:-1]
    behind = np.full(len(order), -1, dtype=np.intp)
    behind[order[:-1][same]] = order[1:][same]
    return behind


def decode_passes(trace: RoutingTrace, batch_size: int) -> DecodePasses:
    """As `batched_passes`, and at least two of them: the first fills a cache.

    Raises:
        WorkloadError: a batch that is empty or larger than the trace, or fewer than two passes.
    """
    passes = batched_passes(trace, batch_size)
    if passes.num_passes < 2:
        raise WorkloadError("routing: the trace has one decode pass, which only fills the cache; record more steps")
    return passes


def batched_passes(trace: RoutingTrace, batch_size: int) -> DecodePasses:
    """Decode steps in batches of `batch_size` prompts, as `trace_cache_stats` takes them.

    Prompts in the order of their numbers; a last, incomplete batch is left out, a prompt that ends early leaves its
    batch.

    Raises:
        WorkloadError: a batch that is empty or larger than the trace.
    """
    decoding = np.flatnonzero(trace.step > 0)
    prompts, place = np.unique(trace.prompt[decoding], return_inverse=True)
    if not 1 <= batch_size <= len(prompts):
        raise WorkloadError(
            f"routing: the trace has {len(prompts)} prompts with decode steps, a batch {batch_size}; record at least a "
            "whole batch or choose a smaller one"
        )
    batch = place // batch_size
    whole = batch < len(prompts) // batch_size
    rows, step = decoding[whole], trace.step[decoding[whole]].astype(np.int64)
    passes, pass_of = np.unique(batch[whole] * (step.max() + 1) + step, return_inverse=True)
    return DecodePasses(rows, pass_of, len(passes))

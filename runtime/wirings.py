"""Graphs of passes with what each task waits for, kept while passes repeat."""

from collections import OrderedDict
from dataclasses import dataclass, field

from hrm.schedule.build import build_graph, page_plan
from hrm.schedule.kept_prompts import keeps_prompts
from runtime.batch import Batch
from runtime.layouts import PolicyLayout
from runtime.wiring import Wiring

MOST_GRAPHS = 64


@dataclass
class Wirings:
    """Passes of the same structure share a graph, where its pages do not depend on how many tokens they carry."""

    layout: PolicyLayout
    _kept: OrderedDict[object, Wiring] = field(default_factory=OrderedDict)

    def of(self, batch: Batch) -> Wiring:
        """The batch's."""
        sizes, policy = self.layout.sizes, self.layout.policy
        on_demand = self.layout.placement.overlap == "on_demand"
        kept = keeps_prompts(batch.slice, policy.prefill_chunk_tokens)
        key = (batch.structure, kept, page_plan(sizes, batch.slice, policy) if on_demand else None)
        if key not in self._kept:
            self._kept[key] = Wiring(build_graph(sizes, batch.slice, policy))
            if len(self._kept) > MOST_GRAPHS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

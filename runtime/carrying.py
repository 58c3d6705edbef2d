"""What one pass has fetched for the next, and where the page pool goes on."""

from dataclasses import dataclass, field

from hrm.schedule.task import Resource
from runtime.device import CpuDevice, CudaDevice
from runtime.memory.paging import Paging
from runtime.model_memory import ModelMemory
from runtime.tasks.state import Carried, PassState
from runtime.tasks.weights import fetch_page


@dataclass
class Carrying:
    """Between two passes: the pages and other weights that are in place, and which passes find them there."""

    device: CpuDevice | CudaDevice
    memory: ModelMemory
    held: Carried = field(default_factory=Carried)
    _held_for: object = None

    def pool_is_new(self) -> None:
        """No page is in place."""
        self._held_for = None

    def forget(self) -> None:
        """Until a pass is through, nothing is known to be in place."""
        self.held, self._held_for = Carried(), None

    def prime(self, state: PassState) -> None:
        """Fetches what the pass expects in place and the one before has not fetched for it."""
        paging = state.paging
        if self._held_for != carry_key(paging):
            state.carried.base, state.carried.pages = 0, {}
            with self.device.lane(Resource.HTOD):
                for page in range(paging.plan.ahead):
                    fetch_page(state, page)
                    state.carried.pages[page] = self.device.mark()
        elif paging.double_buffer and state.carried.per_layer != paging.per_layer:
            recount(state.carried, paging)
        if self.memory.dense.streamed_bytes and state.carried.dense is None:
            with self.device.lane(Resource.HTOD):
                self.memory.dense.fetch(0)
                state.carried.dense = self.device.mark()

    def take_over(self, state: PassState) -> None:
        """What the pass, which is through, leaves to the next one, and where the pool's pages go on."""
        paging = state.paging
        self.held, self._held_for = state.fetched_ahead, carry_key(paging)
        if paging.per_layer:
            self.held.base, self.held.per_layer = next_base(paging, state.carried.base), paging.per_layer
        self.memory.dense.next_pass()
        if state.stages_weights and self.held.pages:  # the next pass stages into buffers that are still copied from
            self.device.host_wait(self.held.pages[max(self.held.pages)])


def carry_key(paging: Paging) -> object:
    """Passes with the same key find each other's prefetched pages in place."""
    if not paging.plan.ahead:
        return None
    if paging.double_buffer:
        return ("double buffer", paging.region.nbytes)
    return ("ring", paging.plan, paging.region)


def recount(carried: Carried, paging: Paging) -> None:
    """The same layers in place, cut into another number of pages."""
    layers = carried.base // max(1, carried.per_layer)
    carried.base = layers * paging.per_layer
    if carried.pages:
        last = carried.pages[max(carried.pages)]
        carried.pages = dict.fromkeys(range(paging.plan.ahead), last)


def next_base(paging: Paging, base: int) -> int:
    """Pages so far, as far as it matters for where the next one goes; counted anew in layers for a double buffer."""
    period = 2 * paging.per_layer if paging.double_buffer else paging.plan.num_slots
    return (base + paging.plan.per_pass) % period

"""The predictive cache policy: all slots shared by all layers, filled in the order in which a pass needs experts."""

import numpy as np
from numpy.typing import NDArray

from hrm.predict.cache_demand import DemandEstimate
from hrm.predict.cache_plan import Fetch
from hrm.predict.cache_ranking import in_order_of_need, smallest, worthier
from hrm.predict.cache_slots import SlotTable

MIN_PROBABILITY = 1 / 3  # of a prefetch, where nothing limits how many there are
UNHURRIED = 0.1  # of one that is over by the next gate; 0.02 to 0.2 differ by up to 3 points of hit rate
WAVE_SHARE = 50  # of so many slots one is given to a wave: of 1,536, 30 in place of 8 cost 0.1 hits of 33 a layer

_PINNED = 2.0  # above every value: not to be displaced before it is computed

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]  # of experts, through all layers


class SharedSlots:
    """Predictive expert cache after ExpertFlow (arXiv 2410.17954, expert cache and correction at the gate).

    The paper shares slots over layers by predicted demand, gives a completed layer's slots to later layers, and swaps
    mispredicted residents for missed experts at the gate. It decides by the predicted paths, as sets. Here an expert
    has a value, and only one of higher value displaces a resident, whatever their layers:

        value = p + (1 - p) max(0, q - loss * layers of a pass) - loss * layers until then

    p: probability of use in this pass; q: in the next one (`DemandEstimate`). From its layer's gate on, an expert's
    next use is in the next pass, with p = q. The paper predicts the pass at hand alone; what is kept for the one after
    it is worth as many hits as what is fetched ahead. `loss` is what a slot yields in a layer's time: hits per pass /
    (slots * layers), as this cache has had them lately. So an expert stays where it earns more than its slot does on
    average (economic value added, Beckmann and Sanchez, HPCA 2017, with layers of a pass in place of ages). Replayed
    against discounts p * g^layers, p - g * layers with fixed g, and expected time of use, it is best or within 1 point
    for synthetic predictions of recall 0.75 and links of 0.5 and 2 experts per layer.

    What is fetched ahead: nearest layer first, the most probable first. A right prefetch saves the wait for one copy, a
    wrong one is in the way of a correction, which finds it half copied on average: p >= (1 - p) / 2, MIN_PROBABILITY.
    A caller who states how many copies the link completes by the next gate has none in the way of corrections; then
    UNHURRIED only spares the link what is hardly ever used.

    At the gate, missed experts take the slots of least value (mispredicted and completed layers' experts, as a rule),
    in waves: no more slots than hold less than the missed experts are worth, and at least max(2, top_k, a fiftieth of
    all), so that one layer's misses do not evict what others need, and are few waves: each waits for the one before.
    """

    def __init__(self, table: SlotTable, top_k: int) -> None:
        self._table, self._min_wave = table, max(2, top_k, table.num_slots // WAVE_SHARE)
        self._demand = DemandEstimate(table.num_layers, table.num_experts)
        shape = table.num_layers, table.num_experts
        self._chance: Floats = np.zeros(shape)  # of use when the expert's layer next has its turn
        self._values: Floats = np.full(shape[0] * shape[1] + 1, -np.inf)  # the last: of an empty slot
        self._rows = self._values[:-1].reshape(shape)
        self._wanted: Numbers = np.zeros(0, dtype=np.intp)  # in this pass, absent or not, in order of need
        self._first_wanted = [0] * (shape[0] + 1)
        self._wanted_again: list[Numbers] = []  # in the next pass, by layers, as far as asked for
        self._hits_per_pass, self._hits_before = float(table.num_slots), 0  # at first: one per slot
        self._loss = 0.0
        self._gated: tuple[NDArray[np.int64], Floats] | None = None  # experts, their values once computed

    def preload(self) -> tuple[Fetch, ...]:
        """Nothing: the first prefetch does it."""
        return ()

    def begin_pass(self, demand: Floats | None, following: Floats | None) -> None:
        """Values and order of need of a pass [layers, experts]; without predictions by running frequency."""
        table = self._table
        if self._demand.passes:
            self._hits_per_pass += self._demand.rate * (table.total_hits - self._hits_before - self._hits_per_pass)
        self._hits_before = table.total_hits
        self._loss = self._hits_per_pass / (table.num_slots * table.num_layers)
        self._gated, self._wanted_again = None, []
        self._chance[:] = expected = self._demand.begin_pass(demand, following)
        again = np.maximum(0.0, self._demand.again - self._loss * table.num_layers)
        self._rows[:] = expected + (1 - expected) * again - self._loss * np.arange(table.num_layers)[:, None]
        self._wanted = in_order_of_need(expected, UNHURRIED)
        layers = np.arange(table.num_layers + 1)
        self._first_wanted = np.searchsorted(self._wanted // table.num_experts, layers).tolist()

    def prefetch(self, layer: int, limit: int | None, room: int | None) -> tuple[Fetch, ...]:
        """At most `limit` and `room` copies for layers from `layer` on, then for the next pass's first layers."""
        most = min((number for number in (limit, room) if number is not None), default=self._table.num_slots)
        if not most:
            return ()
        held = self._values[self._table.expert_in]
        least, floor = (MIN_PROBABILITY if limit is None else UNHURRIED), float(held.min())
        wanted = self._gaining(self._wanted[self._first_wanted[layer] :], floor, least)
        if len(wanted) < most:
            wanted = np.concatenate((wanted, self._gaining(self._wanted_in_next_pass(layer), floor, least)))
        victims = smallest(held, min(most, len(wanted)))
        taken = worthier(self._values[wanted], held[victims])
        return self._table.put(wanted[taken], victims[: len(taken)], ahead=True)

    def _wanted_in_next_pass(self, layers: int) -> Numbers:
        """In the first layers, which have had their gate."""
        for layer in range(len(self._wanted_again), layers):
            likely = in_order_of_need(self._demand.again[layer : layer + 1], UNHURRIED)
            self._wanted_again.append(likely + layer * self._table.num_experts)
        return np.concatenate((self._wanted[:0], *self._wanted_again))

    def _gaining(self, wanted: Numbers, floor: float, least: float) -> Numbers:
        """Those of wanted experts that are absent, worth more than the least resident, and likely enough."""
        wanted = wanted[self._table.slot_of[wanted] < 0]
        wanted = wanted[self._values[wanted] > floor]
        return wanted if least <= UNHURRIED else wanted[self._chance.ravel()[wanted] >= least]

    def worth(self, layer: int) -> Floats:
        """How likely each of a layer's experts is to be used next [experts]: from its gate on, in the next pass."""
        found: Floats = self._demand.again[layer]
        return found

    def gate(
        self, layer: int, hits: dict[int, int], misses: list[int], on_cpu: tuple[int, ...] = ()
    ) -> list[tuple[Fetch, ...]]:
        """Copies of a layer's missed experts, in waves; the worthiest in the last, since they stay.

        on_cpu: touched too, but not copied, not even ahead of the next pass while the layer is computed.
        """
        table, row = self._table, self._rows[layer]
        touched = np.array((*hits, *misses, *on_cpu), dtype=np.int64)
        self._chance[layer] = again = self._demand.note(layer, touched)
        row[:] = again - self._loss * (table.num_layers + layer)
        self._gated = touched, row[touched]
        missed = np.array(misses, dtype=np.int64)
        missed = missed[np.argsort(row[missed], kind="stable")]
        worth = row[missed]
        row[touched] = _PINNED
        row[list(on_cpu)] = -np.inf
        if not misses:
            return []
        slots, numbers = self._slots_for(worth), layer * table.num_experts + missed
        fetches = table.put(numbers, slots, ahead=False)
        return [fetches[i : i + len(slots)] for i in range(0, len(fetches), len(slots))]

    def _slots_for(self, worth: Floats) -> NDArray[np.intp]:
        """Slots for missed experts of these values (ascending), those of least value first."""
        held = self._values[self._table.expert_in]
        victims = smallest(held, len(worth))
        cheaper = int((held[victims] < worth[::-1][: len(victims)]).sum())
        return victims[: max(cheaper, self._min_wave)]

    def complete(self, layer: int) -> None:
        """The layer's experts may be displaced."""
        if self._gated is not None:
            touched, values = self._gated
            self._rows[layer, touched] = values
            self._gated = None

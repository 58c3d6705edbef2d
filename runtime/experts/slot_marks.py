"""Who still writes or uses which slot: the marks that whoever comes next waits for."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.device import CpuDevice, CudaDevice, Mark

Device = CpuDevice | CudaDevice
Slots = tuple[int, ...]


@dataclass
class SlotMarks:
    """Marks of the latest copies and uses of slots, as long as they may be ahead of the device.

    One mark stands for all slots of a wave, and is waited for once. What a passed gate proves to be over is forgotten:
    a lane would otherwise wait for one old mark per slot. Users hold the lock of the slots.
    """

    _corrected: dict[int, Mark] = field(default_factory=dict)
    _prefetched: dict[int, Mark] = field(default_factory=dict)
    _used: dict[int, Mark] = field(default_factory=dict)
    _ahead: deque[tuple[Mark, Slots]] = field(default_factory=deque)  # prefetches, in the order of their lane
    _since_gate: list[Mark] = field(default_factory=list)  # all but those

    def await_idle(self, device: Device, slots: Slots) -> None:
        """The current lane waits until nobody writes or uses the slots."""
        _await(device, slots, self._corrected, self._prefetched, self._used)

    def await_copies(self, device: Device, slots: Slots) -> None:
        """The current lane waits until the slots hold what was last copied to them."""
        _await(device, slots, self._corrected, self._prefetched)

    def correct(self, device: Device, slots: Slots) -> None:
        """The latest work of the current lane writes the slots; whoever computes the layer waits for it."""
        mark = self._mark(device)
        for slot in slots:
            self._corrected[slot] = mark
            self._prefetched.pop(slot, None)

    def prefetch(self, device: Device, slots: Slots) -> None:
        """The same, but no gate waits for it."""
        mark = device.mark()
        self._prefetched.update(dict.fromkeys(slots, mark))
        self._ahead.append((mark, slots))

    def use(self, device: Device, slots: Slots) -> None:
        """What is queued on the current lane so far uses the slots."""
        self._used.update(dict.fromkeys(slots, self._mark(device)))

    def under_way(self, device: Device) -> int:
        """Slots that prefetches may still write; does not wait."""
        while self._ahead and device.reached(self._ahead[0][0]):
            mark, slots = self._ahead.popleft()
            for slot in slots:
                if self._prefetched.get(slot) is mark:
                    del self._prefetched[slot]
            device.recycle((mark,))
        return sum(len(slots) for _, slots in self._ahead)

    def pass_gate(self, device: Device) -> None:
        """The host has seen work that lies behind every use so far, and behind every copy but the prefetches."""
        device.recycle(self._since_gate)
        self._since_gate.clear()
        self._corrected.clear()
        self._used.clear()
        self.under_way(device)

    def arriving(self, slots: Iterable[int]) -> int:
        """How many of the slots prefetches may still write."""
        return len(self._prefetched.keys() & set(slots)) if self._prefetched else 0

    def _mark(self, device: Device) -> Mark:
        mark = device.mark()
        self._since_gate.append(mark)
        return mark


def _await(device: Device, slots: Slots, *marks: dict[int, Mark]) -> None:
    """The current lane waits for the slots' marks, for each once."""
    found = {mark for of in marks if of for slot in slots if (mark := of.get(slot)) is not None}
    for mark in found:
        device.order_after(mark)

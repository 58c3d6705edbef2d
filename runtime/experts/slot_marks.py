"""Who still writes or uses which slot: the marks that whoever comes next waits for."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from runtime.device import CpuDevice, CudaDevice, Mark

Device = CpuDevice | CudaDevice
Slots = tuple[int, ...]


@dataclass
class SlotMarks:
    """Marks of the latest copies and uses of slots, as long as they may be ahead of the device.

    One mark stands for all slots of a wave, and is waited for once. What a passed gate proves to be over is forgotten:
    a lane would otherwise wait for one old event per slot. Users hold the lock of the slots.
    """

    _written: dict[int, Mark] = field(default_factory=dict)
    _used: dict[int, Mark] = field(default_factory=dict)
    _ahead: deque[tuple[Mark, Slots]] = field(default_factory=deque)  # prefetches, in the order of their lane

    def await_idle(self, device: Device, slots: Slots) -> None:
        """The current lane waits until nobody writes or uses the slots."""
        self._await(device, (*self._of(self._written, slots), *self._of(self._used, slots)))

    def await_copies(self, device: Device, slots: Slots) -> None:
        """The current lane waits until the slots hold what was last copied to them."""
        self._await(device, self._of(self._written, slots))

    def write(self, device: Device, slots: Slots, ahead: bool) -> None:
        """The latest work of the current lane writes the slots. ahead: a lane of its own does, that no gate waits for."""
        mark = device.mark()
        self._written.update(dict.fromkeys(slots, mark))
        if ahead:
            self._ahead.append((mark, slots))

    def use(self, device: Device, slots: Slots) -> None:
        """What is queued on the current lane so far uses the slots."""
        self._used.update(dict.fromkeys(slots, device.mark()))

    def under_way(self, device: Device) -> int:
        """Slots that prefetches may still write; does not wait."""
        while self._ahead and device.reached(self._ahead[0][0]):
            mark, slots = self._ahead.popleft()
            for slot in slots:
                if self._written.get(slot) is mark:
                    del self._written[slot]
            device.recycle((mark,))
        return sum(len(slots) for _, slots in self._ahead)

    def pass_gate(self, device: Device) -> None:
        """The host has seen work that lies behind every use so far, and behind every copy but the prefetches."""
        self.under_way(device)
        ahead = {id(mark): mark for mark, _ in self._ahead}
        over = {id(mark): mark for marks in (self._written, self._used) for mark in marks.values()}
        device.recycle(mark for number, mark in over.items() if number not in ahead)
        self._written = {slot: mark for slot, mark in self._written.items() if id(mark) in ahead}
        self._used = {}

    def arriving(self, slots: Iterable[int]) -> int:
        """How many of the slots are still written, as far as is known."""
        return sum(slot in self._written for slot in slots)

    def _of(self, marks: dict[int, Mark], slots: Slots) -> Iterator[Mark]:
        return (marks[slot] for slot in slots if slot in marks)

    def _await(self, device: Device, marks: Iterable[Mark]) -> None:
        for mark in {id(mark): mark for mark in marks}.values():
            device.order_after(mark)

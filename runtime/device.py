"""What the pipeline needs of a device: a lane per queue, marks on it, and waiting for marks of other lanes.

On CUDA a lane is a stream and a mark an event. Where the CPU plays the GPU, work is done when its call returns: a mark
is the time at which that was.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from hrm.errors import HrmError
from hrm.schedule.task import Resource
from runtime.events import EventPool
from runtime.host_counter import HostCounter, make_counter
from runtime.threads import compute_threads

# As many as CUDA has, before anybody begins to use it: a lane that waits for the CPU stops others on its connection.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
HOST_LANES = (Resource.CPU, Resource.HOST)  # their tasks are done when the call returns, on any device

Mark = torch.cuda.Event | float


class CpuDevice:
    """The CPU in the GPU's place."""

    torch_device = torch.device("cpu")

    @contextmanager
    def lane(self, resource: Resource) -> Iterator[None]:
        """A lane is the thread itself."""
        yield

    def enter(self, resource: Resource) -> None:
        """From here on this thread works in that lane."""

    def begin_thread(self, resource: Resource) -> None:
        """Before a thread's first task: the cores are shared with the other processor that the CPU plays."""
        torch.set_num_threads(compute_threads(beside_gpu=False))

    def mark(self) -> Mark:
        """Now."""
        return time.perf_counter()

    def spun_mark(self) -> Mark:
        """Now."""
        return time.perf_counter()

    def recycle(self, marks: Iterable[Mark | None]) -> None:
        """Nothing to reuse."""

    def order_after(self, mark: Mark) -> None:
        """Nothing to wait for: what came before is done."""

    def host_wait(self, mark: Mark) -> None:
        """Nothing to wait for: what came before is done."""

    def host_counter(self) -> HostCounter | None:
        """None: lanes are threads, which wait for each other."""
        return None

    def order_after_host(self, counter: HostCounter, count: int) -> None:
        """Not asked for."""
        raise AssertionError("lanes of the CPU wait on the host")

    def reached(self, mark: Mark) -> bool:
        """What came before is done."""
        return True

    def synchronise(self) -> None:
        """Nothing is ever under way."""

    def seconds(self, since: Mark, mark: Mark) -> float:
        """Difference of two readings of the clock."""
        assert isinstance(since, float) and isinstance(mark, float)
        return mark - since


class CudaDevice:
    """Streams and events of one GPU; host lanes mark with events on streams of their own, which are reached at once."""

    def __init__(self, torch_device: torch.device) -> None:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")  # a full card has no room for gaps
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every shape, and prompts have many
        self.torch_device = torch_device
        self._streams = {resource: torch.cuda.Stream(torch_device) for resource in Resource}  # type: ignore[no-untyped-call]
        self._here = threading.local()  # stream: of the lane that a thread is in; to ask PyTorch costs 7 us
        self._events = EventPool()

    def stream(self, resource: Resource) -> torch.cuda.Stream:
        """The stream behind a lane."""
        return self._streams[resource]

    @contextmanager
    def lane(self, resource: Resource) -> Iterator[None]:
        """Work of this thread goes to the lane's stream."""
        before = getattr(self._here, "stream", None)
        with torch.cuda.device(self.torch_device), torch.cuda.stream(self._streams[resource]):
            self._here.stream = self._streams[resource]
            try:
                yield
            finally:
                self._here.stream = before

    def begin_thread(self, resource: Resource) -> None:
        """Before a thread's first task: work on the CPU leaves cores to the threads that feed the GPU."""
        if resource == Resource.CPU:
            torch.set_num_threads(compute_threads())

    def enter(self, resource: Resource) -> None:
        """From here on this thread's work goes to the lane's stream; for threads that change lanes with every task."""
        self._here.stream = self._streams[resource]
        torch.cuda.set_stream(self._streams[resource])

    def _current(self) -> torch.cuda.Stream:
        found = getattr(self._here, "stream", None)
        return torch.cuda.current_stream() if found is None else found

    def mark(self) -> Mark:
        """An event on the current stream."""
        event = self._events.timed()
        event.record(self._current())
        return event

    def spun_mark(self) -> Mark:
        """A mark on the current stream that a thread will wait for at once, and spin."""
        event = self._events.spun()
        event.record(self._current())
        return event

    def recycle(self, marks: Iterable[Mark | None]) -> None:
        """Marks that nobody waits for any more."""
        self._events.give(marks)

    def order_after(self, mark: Mark) -> None:
        """The current stream waits for the event."""
        assert isinstance(mark, torch.cuda.Event)
        mark.wait(self._current())

    def host_wait(self, mark: Mark) -> None:
        """The thread waits for the event."""
        assert isinstance(mark, torch.cuda.Event)
        mark.synchronize()

    def host_counter(self) -> HostCounter | None:
        """What lanes wait for without the host, if the driver can."""
        return make_counter(self._streams[Resource.ZERO_COPY])

    def order_after_host(self, counter: HostCounter, count: int) -> None:
        """The current stream waits until so many of a host lane's tasks are done."""
        counter.hold(self._current(), count)

    def reached(self, mark: Mark) -> bool:
        """Whether the device is past the event; does not wait."""
        assert isinstance(mark, torch.cuda.Event)
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def synchronise(self) -> None:
        """Waits for all streams."""
        torch.cuda.synchronize(self.torch_device)

    def seconds(self, since: Mark, mark: Mark) -> float:
        """Time between two events."""
        assert isinstance(since, torch.cuda.Event) and isinstance(mark, torch.cuda.Event)
        return float(since.elapsed_time(mark)) / 1e3


def choose_device(name: str | None) -> torch.device:
    """ "cpu", "cuda" with an optional index, or None: the GPU where PyTorch finds one, else the CPU.

    Raises:
        HrmError: there is no such device.
    """
    name = name if name is not None else "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cuda", "cpu") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise HrmError(f"device {name}: must be cuda, cuda with an index such as cuda:1, or cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise HrmError(f"device {name}: PyTorch finds no CUDA GPU here; use --device cpu, where the CPU plays the GPU")
    found = torch.cuda.device_count()
    if index and int(index) >= found:
        raise HrmError(f"device {name}: PyTorch finds {found} CUDA GPUs here, counted from 0")
    return torch.device("cuda", int(index) if index else torch.cuda.current_device())


def make_device(name: str | None) -> CpuDevice | CudaDevice:
    """Lanes on what `choose_device` chooses. Raises HrmError."""
    device = choose_device(name)
    return CpuDevice() if device.type == "cpu" else CudaDevice(device)

"""Runs a program: tasks in order on their queues, slowed where they share a memory or a wire.

Repeated layers are not run again: once the state at the end of a layer equals that of an earlier one - how far each
queue is, and how much of its running task is left - all that follows is a copy, shifted in time, for as long as the
layers are.
"""

from hrm.errors import ScheduleError
from hrm.predict.layout import Edges, Layout
from hrm.predict.program import Program
from hrm.predict.sharing import Sharing
from hrm.schedule.task import Resource

LONGEST_PERIOD = 8  # layers after which a pattern of different layers may repeat
SAME = 1e-9  # relative difference of remaining times below which two states are one
IDLE = float("inf")
ROUNDING = 1e-13  # tasks that end within this share of the time end together: nothing is left to stall on
STALLED = 1e300  # finish of a task that advances at rate 0 for now
Times = list[list[float]]
"""Seconds per queue and position."""


class EventLoop:
    """One simulation of a program; `run` fills `start` and `end`, seconds from the start of the pass."""

    def __init__(self, program: Program, sharing: Sharing, shortcut: bool = True) -> None:
        self.program, self.sharing = program, sharing
        queues = range(len(program.seconds))
        self.now = 0.0
        self.position = [0 for _ in queues]
        self.finish = [IDLE for _ in queues]  # of the running task
        self.start: Times = [[0.0] * len(queue) for queue in program.seconds]
        self.end: Times = [[0.0] * len(queue) for queue in program.seconds]
        self.blocks_run = 0
        self.repeats: tuple[int, float] | None = None  # blocks and seconds after which the schedule repeats itself
        self._rate = [1.0 for _ in queues]
        self._left = [0.0 for _ in queues]  # work of the running task at time _since
        self._since = [0.0 for _ in queues]
        self._queues = list(zip(queues, program.seconds, program.layout.after, program.demands, strict=True))
        self._slowed = False  # whether any task runs below its full rate
        self._leader = program.layout.resources.index(Resource.GPU)
        self._shortcut = shortcut
        self._rates: dict[tuple[tuple[int, int], ...], tuple[list[float], bool]] = {}
        self._states: dict[int, tuple[float, list[int], list[float]]] = {}

    def run(self) -> None:
        """Simulates to the end.

        Raises:
            ScheduleError: tasks that wait for each other.
        """
        borders = [positions[self._leader] for positions in self.program.layout.block_positions[1:]]
        block = 0
        while self._start_ready():
            self._advance()
            while block < len(borders) and self.position[self._leader] >= borders[block]:
                self.blocks_run += 1
                if self._shortcut:
                    block += self._skip(block)
                block += 1
        for resource, at, queue in zip(self.program.layout.resources, self.position, self.program.seconds, strict=True):
            if at < len(queue):
                raise ScheduleError(f"schedule: task {at} of queue {resource} waits for a task that never ends")

    @property
    def makespan(self) -> float:
        """Seconds to the last end of a task, once run."""
        return max(end for ends in self.end for end in ends[-1:])

    def _start_ready(self) -> bool:
        """Starts what can start; whether anything runs."""
        position, finish, now, running = self.position, self.finish, self.now, []
        for q, seconds, edges, demands in self._queues:
            at = position[q]
            if finish[q] == IDLE:
                if at >= len(seconds) or not self._is_ready(edges[at]):
                    continue
                self.start[q][at] = self._since[q] = now
                self._left[q], self._rate[q] = seconds[at], 1.0
                finish[q] = now + seconds[at]
            running.append((q, demands[at]))
        if self.program.contended and running:
            self._share(tuple(running))
        return bool(running)

    def _is_ready(self, edges: Edges) -> bool:
        position = self.position
        for queue, needed in edges:  # noqa: SIM110 - a generator would double the time of the whole loop
            if position[queue] <= needed:
                return False
        return True

    def _advance(self) -> None:
        """Goes to the next end of a task and ends all that end then."""
        finish = self.finish
        self.now = now = min(finish)
        together = now * (1 + ROUNDING)
        for q, at in enumerate(finish):
            if at <= together:
                self.end[q][self.position[q]] = now
                self.position[q] += 1
                finish[q] = IDLE

    def _share(self, running: tuple[tuple[int, int], ...]) -> None:
        """Sets the rates of the running tasks, (queue, demand) each, by what they draw on together."""
        found = self._rates.get(running)
        if found is None:
            program = self.program
            rates = self.sharing.rates([(program.layout.resources[q], program.table[d]) for q, d in running])
            found = self._rates[running] = rates, min(rates) < 1.0
        rates, slowed = found
        if not slowed and not self._slowed:
            return
        self._slowed, now = slowed, self.now
        for (q, _), rate in zip(running, rates, strict=True):
            if rate != self._rate[q]:
                self._left[q] = self._remaining(q)
                self._since[q], self._rate[q] = now, rate
                self.finish[q] = now + self._left[q] / rate if rate else STALLED

    def _remaining(self, q: int) -> float:
        """Work left of the task on queue q, in seconds at full rate."""
        return max(0.0, self._left[q] - (self.now - self._since[q]) * self._rate[q])

    def _skip(self, block: int) -> int:
        """Blocks skipped after `block`, which has just ended, because they repeat earlier ones exactly."""
        borders, queues = self.program.layout.block_positions, range(len(self.position))
        relative = [self.position[q] - borders[block + 1][q] for q in queues]
        left = [0.0 if self.finish[q] == IDLE else self._remaining(q) for q in queues]
        running = [float(self.finish[q] != IDLE) for q in queues]
        self._states[block] = (self.now, relative, left + running)
        for period in range(1, LONGEST_PERIOD + 1):
            before = self._states.get(block - period)
            if before is not None and before[1] == relative and _same(before[2], left + running, self.now - before[0]):
                copies = self._copies(block, period)
                if copies:
                    self.repeats = (period, self.now - before[0])
                    self._jump(block, period, copies, self.now - before[0])
                return copies * period
        return 0

    def _copies(self, block: int, period: int) -> int:
        """How often the last `period` blocks repeat, as far as every queue has reached."""
        layout, ids = self.program.layout, self.program.layout.block_ids
        reach = [_block_at(layout, q, self.position[q]) for q in range(len(self.position))]
        lowest = min(_block_at(layout, q, self._position_at(block - period, q)) for q in range(len(self.position)))
        end = lowest + period
        while end < len(ids) and ids[end] == ids[end - period]:
            end += 1
        return max(0, (end - 1 - max(*reach, block + 1)) // period)

    def _position_at(self, block: int, q: int) -> int:
        return self._states[block][1][q] + self.program.layout.block_positions[block + 1][q]

    def _jump(self, block: int, period: int, copies: int, seconds: float) -> None:
        """Moves every queue `copies` periods on, filling in times as shifted copies of the last period's."""
        borders = self.program.layout.block_positions
        for q in range(len(self.position)):
            tasks = borders[block + 1][q] - borders[block + 1 - period][q]
            first, running = self.position[q], self.finish[q] != IDLE
            start, end = self.start[q], self.end[q]
            for at in range(first, first + copies * tasks):
                start[at + running], end[at] = start[at + running - tasks] + seconds, end[at - tasks] + seconds
            self.position[q] = first + copies * tasks
            self._since[q] += copies * seconds
            self.finish[q] += copies * seconds if self.finish[q] < STALLED else 0.0
        self.now += copies * seconds
        self._states.clear()


def _same(a: list[float], b: list[float], period: float) -> bool:
    return all(abs(x - y) <= SAME * period for x, y in zip(a, b, strict=True))


def _block_at(layout: Layout, q: int, position: int) -> int:
    """The block that the task at a position of queue q belongs to (the fill counts to the first)."""
    low, high = 0, len(layout.block_ids) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if layout.block_positions[middle][q] <= position:
            low = middle
        else:
            high = middle - 1
    return low

"""Shared wires and memory: hand-computed rates, the published measurement, and a simulation by hand."""

import pytest

from hrm.errors import ScheduleError
from hrm.predict.event_loop import EventLoop
from hrm.predict.layer_rates import Cost
from hrm.predict.layout import Layout
from hrm.predict.program import Program, make_program
from hrm.predict.sharing import Sharing
from hrm.schedule.task import Resource

GB = 1e9
GPU, CPU, HTOD, DTOH, ZERO, LINK = (
    Resource.GPU, Resource.CPU, Resource.HTOD, Resource.DTOH, Resource.ZERO_COPY, Resource.LINK,
)  # fmt: skip


def rates(sharing: Sharing, **bytes_per_s: float) -> list[float]:
    """Rates of one-second tasks that move that many bytes of DRAM a second when alone."""
    running = [
        (Resource[name], sharing.demand(Resource[name], Cost(1.0, 0.0, rate, rate)))
        for name, rate in bytes_per_s.items()
    ]
    return sharing.rates(running)


def test_copies_are_served_before_the_cpu():
    """Measured on an H200 host: DRAM read 99 GB/s; CPU attention 53 GB/s alone, 46 beside copies at 54.5 (55.3
    alone).
    """
    copy, attention = rates(Sharing(False, 99 * GB), HTOD=55.3 * GB, CPU=53 * GB)
    assert copy == 1.0
    assert 53 * attention == pytest.approx(99 - 55.3)
    assert 53 * attention == pytest.approx(46, rel=0.06)


def test_nobody_is_slowed_while_there_is_enough():
    assert rates(Sharing(False, 200 * GB), HTOD=55 * GB, DTOH=55 * GB, CPU=53 * GB) == [1.0, 1.0, 1.0]


def test_copies_beyond_dram_share_it_and_leave_the_cpu_nothing():
    copy, store, attention = rates(Sharing(False, 100 * GB), HTOD=100 * GB, DTOH=25 * GB, CPU=50 * GB)
    assert copy == store == pytest.approx(0.8)
    assert attention == 0.0


def test_kernel_reads_and_the_copy_engine_divide_the_wire():
    copy, read = rates(Sharing(False, 1000 * GB), HTOD=50 * GB, ZERO_COPY=50 * GB)
    assert copy == read == 0.5


def test_gpu_to_gpu_traffic_takes_pcie_lanes_only_where_it_runs_on_them():
    assert rates(Sharing(True, 1000 * GB), HTOD=50 * GB, LINK=10 * GB) == [0.5, 0.5]
    assert rates(Sharing(False, 1000 * GB), HTOD=50 * GB, LINK=10 * GB) == [1.0, 1.0]


def program(sharing: Sharing, tasks: list[tuple[Resource, Cost, tuple[int, ...]]]) -> Program:
    """Tasks in queue order with what they wait for, as indices."""
    resources = tuple(dict.fromkeys(resource for resource, _, _ in tasks))
    queues = [[i for i, task in enumerate(tasks) if task[0] == resource] for resource in resources]
    place = {i: (q, at) for q, queue in enumerate(queues) for at, i in enumerate(queue)}
    after = [[tuple(place[a] for a in tasks[i][2]) for i in queue] for queue in queues]
    ends = tuple(len(queue) for queue in queues)
    layout = Layout(
        resources, tuple(map(tuple, queues)), after, queues, list(range(len(tasks))), ((0,) * len(queues), ends), (0,)
    )
    return make_program(layout, [cost for _, cost, _ in tasks], sharing)


def test_a_slowed_task_speeds_up_when_the_other_ends():
    """DRAM 100 GB/s. A copy of 60 GB/s for 1 s leaves 40 of the 80 GB/s that 2 s of CPU work want: half speed.

    After the copy 1.5 s of work are left, at full speed: ends at 2.5 s; the GPU task waits for it and takes 1 s.
    """
    sharing = Sharing(False, 100 * GB)
    copy, work = Cost(1.0, 0.0, 60 * GB, 60 * GB), Cost(2.0, 0.0, 160 * GB, 160 * GB)
    loop = EventLoop(
        program(sharing, [(GPU, Cost(0.0), ()), (HTOD, copy, ()), (CPU, work, ()), (GPU, Cost(1.0), (2,))]), sharing
    )
    loop.run()
    assert loop.end == [[0.0, 3.5], [1.0], [2.5]]


def test_a_starved_task_waits_and_then_runs():
    """A copy takes all of DRAM for 1 s; the CPU's second of work starts with it and gets on only afterwards."""
    sharing = Sharing(False, 100 * GB)
    copy, work = Cost(1.0, 0.0, 100 * GB, 100 * GB), Cost(1.0, 0.0, 50 * GB, 50 * GB)
    loop = EventLoop(program(sharing, [(GPU, Cost(0.0), ()), (HTOD, copy, ()), (CPU, work, ())]), sharing)
    loop.run()
    assert loop.end == [[0.0], [1.0], [2.0]]


def test_tasks_that_wait_for_each_other_are_named():
    sharing = Sharing(False, 100 * GB)
    stuck = program(sharing, [(GPU, Cost(1.0), (1,)), (CPU, Cost(1.0), (0,))])
    with pytest.raises(ScheduleError, match="GPU"):
        EventLoop(stuck, sharing).run()


def test_bytes_that_are_a_rounding_error_take_nothing():
    """1e-23 s of copying beside an overhead of 1e-5 s vanish in the sum."""
    cost = Cost(1e-23 + 1e-5, 0.0, 1e-12, 1e-12, overhead=1e-5)
    assert Sharing(False, 1e11).demand(Resource.HTOD, cost) == (0.0, 0.0, 0.0)

"""Whether a graph over experts in slots copies what it may lack: every layer once after its routers, and at most once
before. Where the CPU computes some of what was missed, it does so in every such layer.
"""

from collections import Counter

from hrm.schedule.faults import fault, named
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind

IN_SLOTS = (Kind.EXPERT_PREFETCH, Kind.EXPERT_CORRECTION)
EXPERT_TASKS = 2  # on the experts in place, and on those that were missed


def check_slots(graph: TaskGraph) -> None:
    """Raises ScheduleError for a layer whose copies or expert tasks are missing, repeated or not of the whole batch."""
    count = Counter((task.kind, task.layer) for task in graph.tasks)
    layers = {task.layer for task in graph.tasks if task.kind in IN_SLOTS}
    if not layers:
        return
    for i, task in enumerate(graph.tasks):
        if task.kind == Kind.EXPERT_FFN and task.micro_batch is not None:
            raise fault(graph, f"{named(graph, i)} serves one micro-batch; experts in slots serve all")
    prefetched = any(count[Kind.EXPERT_PREFETCH, layer] for layer in layers)
    on_cpu = any(count[Kind.CPU_EXPERT_FFN, layer] for layer in layers)
    wanted = {Kind.EXPERT_PREFETCH: int(prefetched), Kind.EXPERT_CORRECTION: 1, Kind.EXPERT_FFN: EXPERT_TASKS}
    wanted[Kind.CPU_EXPERT_FFN] = int(on_cpu)
    for layer in sorted({task.layer for task in graph.tasks if task.kind == Kind.EXPERT_FFN} | layers):
        for kind, number in wanted.items():
            if count[kind, layer] != number:
                raise fault(graph, f"{kind} L{layer} runs {count[kind, layer]} times, not {number}")

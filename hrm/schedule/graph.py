"""A whole pass as tasks on in-order queues."""

from dataclasses import dataclass
from functools import cached_property

from hrm.schedule.pages import PagePlan
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Kind, Resource, Task


@dataclass(frozen=True)
class TaskGraph:
    """Tasks of one pass; those of one resource run in the order of the list.

    `block_starts` are the indices at which the tasks of each layer begin (what stands before the first is the fill):
    blocks of equal layers are copies of each other, which the simulator uses. A pass begins with the pages
    [0, pages.ahead) and the first layer's streamed dense weights in place, and ends with those of the next pass.
    """

    schedule: str
    num_layers: int
    slice: PassSlice
    pages: PagePlan
    tasks: tuple[Task, ...]
    block_starts: tuple[int, ...]

    @cached_property
    def queues(self) -> dict[Resource, tuple[int, ...]]:
        """Task indices of every resource in use, in queue order."""
        found: dict[Resource, list[int]] = {}
        for i, task in enumerate(self.tasks):
            found.setdefault(task.resource, []).append(i)
        return {r: tuple(found[r]) for r in Resource if r in found}

    @cached_property
    def repeats_steps(self) -> bool:
        """Whether the runtime launches what comes before a layer's experts as graphs: in a decode pass of one
        micro-batch of an expert cache, where nothing of it moves.
        """
        kinds = {task.kind for task in self.tasks}
        only = self.slice.micro_batches[0]
        alone = len(self.slice.micro_batches) == 1 and not only.is_prefill
        return alone and Kind.EXPERT_CORRECTION in kinds and Kind.DENSE_FETCH not in kinds

    def __repr__(self) -> str:
        sizes = ", ".join(f"{r} {len(q)}" for r, q in self.queues.items())
        return (
            f"<TaskGraph {self.schedule}: {self.num_layers} layers, {len(self.slice.micro_batches)} micro-batches, "
            f"{len(self.tasks)} tasks ({sizes})>"
        )

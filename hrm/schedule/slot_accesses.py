"""What copies of whole experts into the slots of the expert cache write, and what experts in slots read.

Slots are not told apart: a prefetch may take those that the MoE layer before the last one has left, a correction those
of the one before. Experts that stay resident are never written while a pass may use them.
"""

from hrm.schedule.access_table import AccessTable
from hrm.schedule.buffers import CORRECTED, PREFETCHED, ROUTED, WHOLE
from hrm.schedule.task import Task

PREFETCHED_LAYERS = 2  # a layer's experts are in use, the next one's on their way


def expert_prefetch(table: AccessTable, i: int, task: Task) -> None:
    """The predicted experts of a layer, before its router has run."""
    number = table.slot_layers.get(task.layer, -1)
    table.write(i, PREFETCHED, number % PREFETCHED_LAYERS, number)


def expert_correction(table: AccessTable, i: int, task: Task) -> None:
    """What the routers of all micro-batches chose and no slot holds."""
    for j in table.micro_batches(task):
        table.read(i, ROUTED, j, task.layer, WHOLE)
    table.write(i, CORRECTED, None, table.slot_layers[task.layer])


def read_slots(table: AccessTable, i: int, task: Task) -> None:
    """The first on a layer's experts takes those in place, the second those that were corrected."""
    number = table.slot_layers[task.layer]
    if not table.is_first(task):
        table.read(i, CORRECTED, None, number)
    elif task.layer in table.prefetched:
        table.read(i, PREFETCHED, number % PREFETCHED_LAYERS, number)

"""What copies of weights read and write."""

from hrm.schedule.access_table import AccessTable, pages_of
from hrm.schedule.buffers import DENSE, DENSE_BUFFERS, HOST_SHARE, PAGE, READ, STAGED
from hrm.schedule.builder import STAGING_BUFFERS
from hrm.schedule.task import Task


def weight_read(table: AccessTable, i: int, task: Task) -> None:
    """A page, or the share of a layer that the CPU computes, from disk."""
    for page in pages_of(task):
        table.write(i, READ, page % _disk_buffers(table), page)
    if not pages_of(task):
        share = table.host_shares.get(task.layer, -1)
        table.write(i, HOST_SHARE, share % STAGING_BUFFERS, share)


def weight_stage(table: AccessTable, i: int, task: Task) -> None:
    """A page to page-locked memory."""
    for page in pages_of(task):
        if table.from_disk:
            table.read(i, READ, page % _disk_buffers(table), page)
        table.write(i, STAGED, page % STAGING_BUFFERS, page)


def weight_fetch(table: AccessTable, i: int, task: Task) -> None:
    """A page to its slot."""
    plan = table.graph.pages
    for page in pages_of(task):
        if table.staged:
            table.read(i, STAGED, page % STAGING_BUFFERS, page)
        elif table.from_disk:
            table.read(i, READ, page % _disk_buffers(table), page)
        table.write(i, PAGE, page % plan.num_slots, page)
        table.use(PAGE, page % plan.num_slots, page).kept = page >= plan.per_pass


def dense_fetch(table: AccessTable, i: int, task: Task) -> None:
    """Units take turns: layers, the LM head, the next pass's first layer."""
    table.dense_units += 1
    use = table.use(DENSE, table.dense_units % DENSE_BUFFERS, table.dense_units)
    use.writers.append(i)
    use.kept = table.dense_units > table.graph.num_layers


def _disk_buffers(table: AccessTable) -> int:
    return STAGING_BUFFERS * max(table.graph.pages.per_layer)

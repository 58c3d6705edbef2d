"""Which term of the cost model is wrong where a measured pass is longer, or shorter, than its simulation."""

from collections.abc import Mapping

from hrm.predict.timeline import Timeline
from hrm.schedule.task import Resource
from runtime.validation.report import Explanation, KindSeconds, QueueSeconds, Term

WAITING = "waiting"
BETWEEN = "between passes"
Sums = dict[tuple[str, str], tuple[int, float]]  # (kind, queue) -> tasks, seconds


def explain(predicted: Timeline, measured: Timeline, seconds: float) -> Explanation:
    """Splits `seconds` of the measured pass less the predicted ones, on the queue that was measured busiest.

    A queue's pass is its tasks, waiting between them (for other queues, for launches by the host), and what is left of
    `seconds`: forming the batch before the first task and taking the tokens after the last; less than nothing
    where the next pass begins while the last fetches of this one still run.
    """
    queue = max(measured.busy_seconds, key=lambda r: measured.busy_seconds[r])
    terms = _queue_terms(predicted, measured, queue)
    terms.append(Term(name=BETWEEN, seconds=seconds - measured.makespan))
    critical = _differences(predicted.critical_seconds, measured.critical_seconds)
    gap = seconds - predicted.makespan
    wrong = max(terms, key=lambda term: term.seconds if gap > 0 else -term.seconds)
    return Explanation(
        queue=str(queue),
        gap=gap,
        terms=_largest_first(terms),
        critical=_largest_first(critical),
        wrong=_name(wrong, queue),
        wrong_seconds=wrong.seconds,
    )


def _queue_terms(predicted: Timeline, measured: Timeline, queue: Resource) -> list[Term]:
    """Per kind on one queue, and its waiting; adds up to the difference of the makespans."""
    sums = [_of_queue(kind_sums(timeline), queue) for timeline in (predicted, measured)]
    idle = [t.makespan - t.busy_seconds.get(queue, 0.0) for t in (predicted, measured)]
    return [*_differences(*sums), Term(name=WAITING, seconds=idle[1] - idle[0])]


def _of_queue(sums: Sums, queue: Resource) -> dict[str, float]:
    return {kind: seconds for (kind, resource), (_, seconds) in sums.items() if resource == str(queue)}


def _differences(predicted: Mapping[str, float], measured: Mapping[str, float]) -> list[Term]:
    return [
        Term(name=name, seconds=measured.get(name, 0.0) - predicted.get(name, 0.0))
        for name in dict.fromkeys((*measured, *predicted))
    ]


def _largest_first(terms: list[Term]) -> tuple[Term, ...]:
    return tuple(sorted(terms, key=lambda term: -abs(term.seconds)))


def _name(term: Term, queue: Resource) -> str:
    return term.name if term.name == BETWEEN else f"{term.name} ({queue})"


def kind_sums(timeline: Timeline) -> Sums:
    """Tasks and their seconds by kind and queue, in the order in which they first come."""
    found: Sums = {}
    for task, start, end in zip(timeline.graph.tasks, timeline.start, timeline.end, strict=True):
        key = (task.kind.value, str(task.resource))
        count, seconds = found.get(key, (0, 0.0))
        found[key] = (count + 1, seconds + float(end - start))
    return found


def kind_table(predicted: Timeline, measured: Timeline) -> tuple[KindSeconds, ...]:
    """Seconds by kind on both sides, the longest measured first."""
    both = kind_sums(predicted), kind_sums(measured)
    rows = []
    for kind, queue in dict.fromkeys((*both[1], *both[0])):
        (planned, before), (count, seconds) = (sums.get((kind, queue), (0, 0.0)) for sums in both)
        rows.append(KindSeconds(kind=kind, queue=queue, count=max(count, planned), predicted=before, measured=seconds))
    return tuple(sorted(rows, key=lambda row: -row.measured))


def queue_table(predicted: Timeline, measured: Timeline) -> tuple[QueueSeconds, ...]:
    """Busy seconds and utilisation of every queue on both sides."""
    return tuple(
        QueueSeconds(
            queue=str(queue),
            predicted=predicted.busy_seconds.get(queue, 0.0),
            measured=seconds,
            predicted_utilisation=predicted.utilisation.get(queue, 0.0),
            measured_utilisation=measured.utilisation[queue],
        )
        for queue, seconds in measured.busy_seconds.items()
    )

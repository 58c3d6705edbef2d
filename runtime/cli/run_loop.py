"""The loop of `hrm run`: results to the file as they come, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runtime.requests.request import Completion, Refusal, Request
from runtime.requests.result_line import result_line

if TYPE_CHECKING:
    from hrm.predict.timeline import Timeline
    from runtime.requests.entry import Form


class Progress(Protocol):
    """Counts of a run so far; tokens_per_s is that of the last passes."""

    @property
    def generated_tokens(self) -> int: ...

    @property
    def passes(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def tokens_per_s(self) -> float: ...


class Engine(Protocol):
    """What the loop asks of an engine."""

    @property
    def progress(self) -> Progress: ...

    @property
    def last_timeline(self) -> Timeline | None: ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Refusal]: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    """Requests answered in this run."""

    finished: int = 0
    refused: int = 0

    def add(self, result: Completion | Refusal) -> None:
        """Counts one."""
        if isinstance(result, Refusal):
            self.refused += 1
        else:
            self.finished += 1

    @property
    def answered(self) -> int:
        """All of them."""
        return self.finished + self.refused


@dataclass(frozen=True)
class ResultWriter:
    """Writes results in the form of their requests. forms: by request id; append: None where nothing is kept."""

    forms: Mapping[str, Form]
    model_name: str
    append: Callable[[bytes], None] | None

    def write(self, result: Completion | Refusal) -> None:
        """Writes one result.

        Raises:
            RequestError: the output cannot be written.
        """
        if self.append is not None:
            form = self.forms[result.request.request_id]
            self.append(result_line(form, result, self.model_name, int(time.time())))


def answer_all(
    engine: Engine, requests: tuple[Request, ...], writer: ResultWriter, counts: Counts, predicted: float | None
) -> None:
    """Runs the requests; each result is written before the next is asked for.

    Raises:
        HrmError: of the engine, or RequestError of the output; what is finished is written.
    """
    with _bar(engine, requests, counts, predicted) as update:
        for result in engine.generate(requests):
            writer.write(result)
            counts.add(result)
            update()


@contextmanager
def _bar(
    engine: Engine, requests: tuple[Request, ...], counts: Counts, predicted: float | None
) -> Iterator[Callable[[], None]]:
    """Drawn several times a second, where somebody watches: passes are longer than that."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    expected = sum(request.sampling.max_tokens for request in requests)

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(describe_speed(engine.progress, expected, predicted))

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed())
    with RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        before = counts.answered
        task = bar.add_task("requests finished", total=before + len(requests), completed=before)
        yield lambda: bar.update(task, completed=counts.answered)


def describe_speed(progress: Progress, expected_tokens: int, predicted: float | None) -> str:
    """Tokens/s now and predicted, and the time left if every request goes to its full length."""
    words = [f"{progress.tokens_per_s:,.1f} tokens/s"]
    if predicted is not None:
        words.append(f"{predicted:,.1f} predicted")
    if progress.tokens_per_s > 0:
        left = max(0, expected_tokens - progress.generated_tokens) / progress.tokens_per_s
        words.append(f"{_clock(left)} left")
    return ", ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

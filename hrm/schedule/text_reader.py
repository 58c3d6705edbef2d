"""Reads the text form of a task graph line by line, and says of a wrong line which it is."""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from hrm.errors import HrmError, ScheduleError
from hrm.schedule.graph import TaskGraph
from hrm.schedule.pages import PagePlan
from hrm.schedule.slice import MicroBatch, PassSlice
from hrm.schedule.task import Kind, Resource, Task, Work
from hrm.spec.suggest import unknown_name

Name = TypeVar("Name", bound=StrEnum)
Words = list[str]
LARGEST = 10**12  # no count of a graph comes near it


class GraphReader:
    """A cursor over the lines; every method raises ScheduleError with the number of the line it cannot read."""

    def __init__(self, lines: list[str]) -> None:
        self._lines, self._at = lines, 0
        self._layers = self._batches = self._tasks = 0

    def next_line(self, expected: str) -> Words:
        """The words of the next line."""
        if self._at >= len(self._lines):
            raise ScheduleError(f"task graph: ends after line {len(self._lines)}, before {expected}")
        self._at += 1
        return self._lines[self._at - 1].split()

    def graph(self) -> TaskGraph:
        """Everything behind the first line."""
        (schedule,) = self._header("schedule", 1)
        self._layers = self._whole(self._header("layers", 1)[0], "layers")
        blocks = tuple(self._whole(word, "block start") for word in self._header("blocks"))
        plan = self._page_plan()
        work = self._slice()
        self._tasks = self._whole(self._header("tasks", 1)[0], "tasks")
        tasks = tuple(self._task(i) for i in range(self._tasks))
        if self._at < len(self._lines):
            self._at += 1
            self._fail(f"stands behind the last of {self._tasks} tasks")
        if any(start > self._tasks for start in blocks) or list(blocks) != sorted(blocks):
            raise ScheduleError(f"task graph: blocks start at {blocks}, of {self._tasks} tasks")
        return TaskGraph(schedule, self._layers, work, plan, tasks, blocks)

    def _fail(self, problem: str) -> NoReturn:
        raise ScheduleError(f"task graph: line {self._at} {problem}: {self._lines[self._at - 1]!r}")

    def _header(self, name: str, count: int | None = None) -> Words:
        """The words behind the name of a header line."""
        words = self.next_line(f"the line {name!r}")
        if words[:1] != [name]:
            self._fail(f"is not the header line {name!r}")
        if count is not None and len(words) != count + 1:
            self._fail(f"has {len(words) - 1} words behind {name!r}, not {count}")
        return words[1:]

    def _ahead(self, name: str) -> bool:
        """Whether the next line begins with a name."""
        return self._at < len(self._lines) and self._lines[self._at].split()[:1] == [name]

    def _page_plan(self) -> PagePlan:
        slots, name, ahead = self._header("slots", 3)
        if name != "ahead":
            self._fail(f"has {name!r} where 'ahead' has to stand")
        slots_ahead = self._whole(slots, "slots"), self._whole(ahead, "pages ahead")
        counts, shares = list[int](), list[float]()
        while self._ahead("pages"):
            layer, count, share = self._header("pages", 3)
            self._numbered(layer, "L", len(counts))
            counts.append(self._whole(count, "pages"))
            shares.append(self._fields([share], {"share": self._real})["share"])
        if counts and len(counts) != self._layers:
            self._fail(f"is the last of {len(counts)} layers with pages; the graph has {self._layers}")
        return PagePlan(tuple(counts), tuple(shares), *slots_ahead)

    def _slice(self) -> PassSlice:
        found = list[MicroBatch]()
        while self._ahead("micro_batch"):
            words = self._header("micro_batch")
            self._numbered(words[0] if words else "", "M", len(found))
            found.append(MicroBatch(**self._fields(words[1:], self._micro_batch_fields)))
        self._batches = len(found)
        try:
            return PassSlice(tuple(found))
        except HrmError as error:
            raise ScheduleError(f"task graph: line {self._at}: {error}") from error

    def _task(self, index: int) -> Task:
        words = self.next_line(f"task {index} of {self._tasks}")
        if len(words) < 4:
            self._fail("is no task: index, queue, kind, layer")
        if words[0] != str(index):
            self._fail(f"has index {words[0]}; {index} comes next")
        resource, kind = self._one_of(Resource, words[1]), self._one_of(Kind, words[2])
        layer, rest = self._below(words[3], "L", self._layers, "layer"), words[4:]
        micro_batch = None
        if rest and rest[0][:1] == "M":
            micro_batch = self._below(rest.pop(0), "M", self._batches, "micro-batch")
        cut = rest.index("after") if "after" in rest else len(rest)
        if rest[cut:] == ["after"]:
            self._fail("names no task behind 'after'")
        after = tuple(self._below(word, "", self._tasks, "task") for word in rest[cut + 1 :])
        return Task(kind, layer, micro_batch, resource, Work(**self._fields(rest[:cut], self._work_fields)), after)

    @property
    def _work_fields(self) -> dict[str, Callable[[str, str], Any]]:
        return {
            "sequences": self._whole,
            "prompt_tokens": self._whole,
            "share": self._real,
            "pages": self._range,
            "ahead": self._yes,
            "experts": self._real,
        }

    @property
    def _micro_batch_fields(self) -> dict[str, Callable[[str, str], Any]]:
        whole = dict.fromkeys(("sequences", "gpu_sequences", "prompt_tokens"), self._whole)
        return whole | dict.fromkeys(("context_len", "prompts", "prompt_len", "prompt_len_sq"), self._real)

    def _fields(self, words: Words, readers: dict[str, Callable[[str, str], Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in readers:
                self._fail(str(unknown_name("field", name, tuple(readers))))
            if name in found:
                self._fail(f"has {name} twice")
            found[name] = readers[name](value, name)
        return found

    def _one_of(self, names: type[Name], word: str) -> Name:
        try:
            return names(word)
        except ValueError:
            self._fail(str(unknown_name(names.__name__.lower(), word, tuple(names))))

    def _whole(self, word: str, name: str) -> int:
        if not (word.isascii() and word.isdigit()) or int(word) > LARGEST:
            self._fail(f"has {name} {word!r}, which is no whole number from 0 to {LARGEST}")
        return int(word)

    def _real(self, word: str, name: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            self._fail(f"has {name} {word!r}, which is no number from 0 on")
        return value

    def _range(self, word: str, name: str) -> tuple[int, int]:
        first, colon, end = word.partition(":")
        if not colon:
            self._fail(f"has {name} {word!r}, which is no range like 3:4")
        return self._whole(first, name), self._whole(end, name)

    def _yes(self, word: str, name: str) -> bool:
        if word != "yes":
            self._fail(f"has {name} {word!r}; it is 'yes' or left out")
        return True

    def _below(self, word: str, letter: str, end: int, name: str) -> int:
        """A number behind its letter, one of `end`."""
        if not word.startswith(letter):
            self._fail(f"has {word!r} where {name} {letter}0 to {letter}{end - 1} has to stand")
        number = self._whole(word[len(letter) :], name)
        if number >= end:
            self._fail(f"has {name} {number} of {end}")
        return number

    def _numbered(self, word: str, letter: str, index: int) -> None:
        if word != f"{letter}{index}":
            self._fail(f"has {word!r} where {letter}{index} comes next")

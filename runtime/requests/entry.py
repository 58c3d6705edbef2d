"""One line of an input file: what it asks for, before any tokenizer has seen it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runtime.requests.request import Sampling

Form = Literal["plain", "chat", "completion"]


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages as the chat template takes them: mappings with "role" and "content", both text."""

    messages: tuple[Mapping[str, str], ...]


Prompt = str | tuple[int, ...] | Chat


@dataclass(frozen=True, slots=True)
class Entry:
    """A request as its line states it. `where` is file and line; `form` decides how its result is written.

    model: the name that a batch line states, which has to be the same in all lines of a file.
    """

    where: str
    request_id: str
    form: Form
    prompt: Prompt
    sampling: Sampling
    model: str | None = None

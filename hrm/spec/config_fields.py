"""Typed access to the fields of one JSON object, so that every fault names its file and field."""

import reprlib
from collections.abc import Mapping
from typing import Any

from hrm.errors import ModelConfigError

MAX_SIZE = 2**24  # wider than any tensor dimension of a published model; a larger number is a typing error
MAX_TOKENS = 2**30


class ConfigFields:
    """The fields of a Hugging Face config.json, or of an object nested in it.

    Every method raises ModelConfigError for a value of the wrong type or out of range. An absent field and
    `null` are the same: Hugging Face writes either.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._prefix = prefix

    def error(self, field: str, wrong: str) -> ModelConfigError:
        """The error for `field`; `wrong` says what is wrong and what to do."""
        return ModelConfigError(f"{self._where}: {self._prefix}{field} {wrong}")

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(field) is not None

    def _required(self, field: str) -> Any:
        if not self.has(field):
            raise self.error(field, "is missing; copy it from the model's published config.json")
        return self._values[field]

    def size(self, field: str, at_most: int = MAX_SIZE) -> int:
        """A whole number from 1 to `at_most`, required."""
        return self._whole(field, self._required(field), 1, at_most)

    def optional_size(self, field: str, at_most: int = MAX_SIZE) -> int | None:
        """As `size`, None where the field is absent or null."""
        return self.size(field, at_most) if self.has(field) else None

    def count(self, field: str, default: int | None = None, at_most: int = MAX_SIZE) -> int:
        """A whole number from 0 to `at_most`; `default` where absent (None: required)."""
        if default is not None and not self.has(field):
            return default
        return self._whole(field, self._required(field), 0, at_most)

    def _whole(self, field: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(field, f"must be a whole number, not {reprlib.repr(value)}")
        if not least <= value <= most:
            raise self.error(field, f"must lie between {least} and {most}, not {reprlib.repr(value)}")
        return value

    def flag(self, field: str, default: bool | None = None) -> bool:
        """true or false; `default`, Hugging Face's own, where absent (None: required)."""
        if default is not None and not self.has(field):
            return default
        value = self._required(field)
        if not isinstance(value, bool):
            raise self.error(field, f"must be true or false, not {reprlib.repr(value)}")
        return value

    def text(self, field: str) -> str:
        """A text, required."""
        value = self._required(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be a text, not {reprlib.repr(value)}")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, required."""
        values = self._list(field)
        if not all(isinstance(value, str) for value in values):
            raise self.error(field, f"must be a list of texts, not {reprlib.repr(values)}")
        return tuple(values)

    def counts(self, field: str, at_most: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `at_most`, empty where absent or null."""
        values = self._list(field) if self.has(field) else []
        return tuple(self._whole(f"{field}[{i}]", value, 0, at_most) for i, value in enumerate(values))

    def _list(self, field: str) -> list[Any]:
        value = self._required(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {reprlib.repr(value)}")
        return value

    def child(self, field: str) -> "ConfigFields":
        """The fields of a nested object, required."""
        value = self._required(field)
        if not isinstance(value, Mapping):
            raise self.error(field, f"must be an object with fields, not {reprlib.repr(value)}")
        return ConfigFields(value, self._where, f"{self._prefix}{field}.")

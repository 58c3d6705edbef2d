"""Typed access to the fields of one JSON object in a file of requests, so that every fault names file and line."""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hrm.errors import RequestError
from hrm.spec.text_file import unique_keys


def parse_object(raw: bytes, where: str) -> "JsonFields":
    """The JSON object in one line.

    Raises:
        RequestError: not UTF-8, not JSON, a field given twice, text that is no Unicode, or anything but an object.
    """
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as failure:
        raise RequestError(f"{where}: is not text (byte {failure.start + 1} is not valid UTF-8)") from None
    except UnicodeEncodeError:
        raise RequestError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    except (ValueError, RecursionError) as failure:
        raise RequestError(f"{where}: is not JSON ({str(failure)[:200]})") from None
    if not isinstance(data, dict):
        raise RequestError(f"{where}: must be a JSON object, not {reprlib.repr(data)}")
    return JsonFields(data, where)


@dataclass(frozen=True)
class JsonFields:
    """One object. An absent field and `null` are the same. Every method raises RequestError for a wrong value."""

    values: Mapping[str, Any]
    where: str

    def error(self, field: str, wrong: str) -> RequestError:
        """The error for `field`; `wrong` says what is wrong and what to do."""
        return RequestError(f"{self.where}: {field} {wrong}")

    def get(self, field: str) -> Any:
        """Its value as JSON has it, None where absent."""
        return self.values.get(field)

    def text(self, field: str) -> str | None:
        """Text that is not empty."""
        value = self.get(field)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.error(field, f"must be text that is not empty, not {reprlib.repr(value)}")
        return value

    def required_text(self, field: str) -> str:
        """Text that must be there."""
        value = self.text(field)
        if value is None:
            raise self.error(field, "is missing")
        return value

    def whole(self, field: str, least: int, most: int) -> int | None:
        """A whole number in a range, both ends included."""
        value = self.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(field, f"must be a whole number from {least:,} to {most:,}, not {reprlib.repr(value)}")
        return value

    def number(self, field: str) -> float | None:
        """A finite number."""
        value = self.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(field, f"must be a finite number, not {reprlib.repr(value)}")
        return float(value)

    def flag(self, field: str) -> bool | None:
        """true or false."""
        value = self.get(field)
        if value is not None and not isinstance(value, bool):
            raise self.error(field, f"must be true or false, not {reprlib.repr(value)}")
        return value

    def texts(self, field: str) -> tuple[str, ...] | None:
        """One text or a list of texts, none of them empty."""
        value = self.get(field)
        if value is None:
            return None
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise self.error(field, f"must be text or a list of texts, none empty, not {reprlib.repr(value)}")
        return tuple(items)

    def nested(self, field: str) -> "JsonFields":
        """An object that must be there."""
        value = self.get(field)
        if not isinstance(value, dict):
            raise self.error(field, "is missing" if value is None else f"must be an object, not {reprlib.repr(value)}")
        return JsonFields(value, f"{self.where}: {field}")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Any field beside `known` is an error: it may be a typing error, or ask for what is not done."""
        names = sorted(known)
        for field in self.values:
            if field not in names:
                close = get_close_matches(field, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
                raise RequestError(f"{self.where}: unknown field {reprlib.repr(field)}; {hint}")

"""Turns the plain mapping of a profile file into its models, naming file and field in every error."""

import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from hrm.errors import ProfileError
from hrm.spec.hardware_parts import Kind, Number, PeakFlops, Source
from hrm.spec.suggest import unknown_name
from hrm.spec.units import parse_quantity

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_NUMBER_KEYS = ("value", "kind", "source")


@dataclass(frozen=True)
class Reader:
    """Reads fields of one file; `sources` is empty until its table has been read."""

    file: str
    sources: dict[str, Source]

    def mapping(self, raw: object, field: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
        """`raw` with all keys of `required` and some of `optional`. Raises ProfileError, UnknownNameError."""
        fields = self.free_mapping(raw, field)
        known = (*required, *optional)
        for key in fields:
            if key not in known:
                raise unknown_name("field", key, known, self.where(field))
        for key in required:
            if fields.get(key) is None:
                raise ProfileError(f"{self.where(f'{field}.{key}')}: is missing; add it")
        return fields

    def free_mapping(self, raw: object, field: str) -> dict[str, Any]:
        """`raw` as a mapping whose keys are names of the file's own choice."""
        if not isinstance(raw, dict):
            raise ProfileError(f"{self.where(field)}: must be a mapping, not {reprlib.repr(raw)}")
        return {str(key): value for key, value in raw.items()}

    def text(self, raw: object, field: str) -> str:
        """Non-empty text."""
        if not isinstance(raw, str) or not raw.strip():
            raise ProfileError(f"{self.where(field)}: must be text, not {reprlib.repr(raw)}")
        return raw.strip()

    def optional_text(self, fields: dict[str, Any], key: str, field: str) -> str | None:
        """`fields[key]` as text, None where it is not given."""
        return None if fields.get(key) is None else self.text(fields[key], f"{field}.{key}")

    def whole(self, raw: object, field: str) -> int:
        """A whole number from 1 to a million (a count needs no unit)."""
        if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= 1_000_000:
            raise ProfileError(f"{self.where(field)}: must be a whole number from 1, not {reprlib.repr(raw)}")
        return raw

    def source(self, raw: object, field: str) -> Source:
        """One entry of the `sources` table."""
        fields = self.mapping(raw, field, ("title", "date"), ("url",))
        date = "" if isinstance(fields["date"], dict | list) else str(fields["date"])
        if not _DATE.fullmatch(date):
            raise ProfileError(f"{self.where(f'{field}.date')}: must be YYYY, YYYY-MM or YYYY-MM-DD, not {date[:40]!r}")
        title = self.text(fields["title"], f"{field}.title")
        return Source(title=title, date=date, url=self.optional_text(fields, "url", field))

    def number(self, raw: object, field: str, dimension: str) -> Number:
        """A quantity of `dimension`. Raises UnitError, ProfileError or UnknownNameError."""
        fields = self.number_fields(raw, field, dimension)
        value = parse_quantity(fields["value"], dimension, self.where(field))
        return Number(value=value, **self.provenance(fields, field))

    def peak_flops(self, raw: object, field: str) -> PeakFlops:
        """A dense peak in flop/s, optionally with the dtype it accumulates in."""
        fields = self.number_fields(raw, field, "flops_per_s", ("accumulate",))
        value = parse_quantity(fields["value"], "flops_per_s", self.where(field))
        accumulate = self.optional_text(fields, "accumulate", field)
        return PeakFlops(value=value, accumulate=accumulate, **self.provenance(fields, field))

    def share(self, raw: object, field: str, peak: float, dimension: str) -> Number:
        """An efficiency in 0..1, written in % or as the rate achieved, which is divided by `peak`."""
        return self.share_of(self.number_fields(raw, field, "ratio"), field, peak, dimension)

    def share_of(self, fields: dict[str, Any], field: str, peak: float, dimension: str) -> Number:
        """As `share`, for fields that have been read."""
        text, where = fields["value"], self.where(field)
        in_percent = isinstance(text, str) and text.rstrip().endswith("%")
        if in_percent or not isinstance(text, str):
            value = parse_quantity(text, "ratio", where)
        else:
            value = parse_quantity(text, dimension, where) / peak
        return Number(value=value, **self.provenance(fields, field))

    def number_fields(
        self,
        raw: object,
        field: str,
        dimension: str,
        optional: Iterable[str] = (),
        required: Iterable[str] = (),
    ) -> dict[str, Any]:
        """The fields of a number's one-line mapping; a bare number gets the message about its unit."""
        if not isinstance(raw, dict):
            parse_quantity(raw, dimension, self.where(field))
            raise ProfileError(f"{self.where(field)}: states no source; write {{value: {raw}, kind: ..., source: ...}}")
        return self.mapping(raw, field, (*required, *_NUMBER_KEYS), ("note", *optional))

    def provenance(self, fields: dict[str, Any], field: str) -> dict[str, Any]:
        """text, kind, source, date and note of a number."""
        kinds = get_args(Kind)
        kind = self.text(fields["kind"], f"{field}.kind")
        if kind not in kinds:
            raise unknown_name("kind", kind, kinds, self.where(f"{field}.kind"))
        source = self.text(fields["source"], f"{field}.source")
        if source not in self.sources:
            raise unknown_name("source", source, self.sources, self.where(f"{field}.source"))
        return {
            "text": str(fields["value"]).strip(),
            "kind": kind,
            "source": source,
            "date": self.sources[source].date,
            "note": self.optional_text(fields, "note", field),
        }

    def where(self, field: str) -> str:
        """ "file: field" for messages."""
        return f"{self.file}: {field}"

"""Reads a plain line: {"prompt": "..."} or {"prompt_tokens": [...]}."""

import reprlib
from typing import Any

from runtime.requests.entry import Entry, Prompt
from runtime.requests.json_fields import JsonFields
from runtime.requests.request import Sampling
from runtime.requests.sampling_fields import SAMPLING_FIELDS, read_sampling

PLAIN_FIELDS = ("id", "prompt", "prompt_tokens", *SAMPLING_FIELDS)
LARGEST_TOKEN = 2**31 - 1


def read_plain_line(fields: JsonFields, line: int, defaults: Sampling) -> Entry:
    """A plain request; without an id of its own it is called line-N, after its place in the file.

    Raises:
        RequestError: no prompt or two, an unknown field, or a wrong value.
    """
    fields.refuse_unknown(PLAIN_FIELDS)
    request_id = fields.text("id") or f"line-{line}"
    return Entry(fields.where, request_id, "plain", _prompt(fields), read_sampling(fields, request_id, defaults))


def _prompt(fields: JsonFields) -> Prompt:
    text, tokens = fields.text("prompt"), fields.get("prompt_tokens")
    if (text is None) == (tokens is None):
        raise fields.error("prompt", "and prompt_tokens: give one of them")
    return read_tokens(fields, "prompt_tokens", tokens) if text is None else text


def read_tokens(fields: JsonFields, field: str, value: Any) -> tuple[int, ...]:
    """Token ids out of `field`.

    Raises:
        RequestError: anything but a list of whole numbers from 0 that is not empty.
    """
    if not isinstance(value, list) or not value:
        raise fields.error(field, f"must be a list of token ids, not {reprlib.repr(value)}")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= LARGEST_TOKEN:
            raise fields.error(field, f"holds {reprlib.repr(token)}, which is no token id")
    return tuple(value)

"""Reads how tokens are to be chosen from the fields of a request."""

import hashlib
from dataclasses import replace

from runtime.requests.json_fields import JsonFields
from runtime.requests.request import Sampling

SAMPLING_FIELDS = ("max_tokens", "temperature", "top_p", "seed", "stop", "ignore_eos")
MOST_TOKENS = 10_000_000
LARGEST_SEED = 2**63 - 1


def read_sampling(fields: JsonFields, request_id: str, defaults: Sampling) -> Sampling:
    """What the fields state, and `defaults` for the rest.

    Without a seed of its own a request draws one from the default seed and its id: equal prompts then get different
    samples, and the same ones again in the next run.

    Raises:
        RequestError: a value of the wrong type or out of range.
    """
    seed = fields.whole("seed", 0, LARGEST_SEED)
    stated = {
        "max_tokens": fields.whole("max_tokens", 1, MOST_TOKENS),
        "temperature": _temperature(fields),
        "top_p": _top_p(fields),
        "seed": derived_seed(defaults.seed, request_id) if seed is None else seed,
        "stop": fields.texts("stop"),
        "ignore_eos": fields.flag("ignore_eos"),
    }
    return replace(defaults, **{name: value for name, value in stated.items() if value is not None})  # type: ignore[arg-type]


def derived_seed(seed: int, request_id: str) -> int:
    """A request's own seed, in [0, 2^63)."""
    digest = hashlib.sha256(f"{seed}:{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _temperature(fields: JsonFields) -> float | None:
    value = fields.number("temperature")
    if value is not None and value < 0:
        raise fields.error("temperature", f"must be zero (greedy) or more, not {value:g}")
    return value


def _top_p(fields: JsonFields) -> float | None:
    value = fields.number("top_p")
    if value is not None and not 0 < value <= 1:
        raise fields.error("top_p", f"must lie in (0, 1], not {value:g}")
    return value

"""Decode passes of one mode of `expert_cache.py`: what is taken down of each, and what they come to."""

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from host_time import HostTime, host_time

from hrm.errors import HrmError
from hrm.predict.cache_plan import CacheCounts
from runtime.engine import Engine
from runtime.requests.request import Request


@dataclass(frozen=True)
class DecodePass:
    """Seconds and sequences, and the cache's counts of it."""

    seconds: float
    sequences: int
    counts: CacheCounts | None
    late: int
    work: Any
    host: dict[str, dict[str, float]]


def decode_passes(engine: Engine, waiting: "deque[Request]", warmup: int) -> list[DecodePass]:
    """Those of full batches after the first ones."""
    passes: list[DecodePass] = []
    with host_time() as host:
        while waiting or engine.table.active.any():
            found = _step(engine, waiting, host)
            passes += [found] if found is not None else []
    if len(passes) <= warmup:
        raise HrmError(f"--warmup {warmup}: only {len(passes)} decode passes were run; raise --gen-len")
    most = max(p.sequences for p in passes)
    full = [p for p in passes[warmup:] if p.sequences == most]
    if not full:
        raise HrmError(f"no pass after {warmup} has all {most} sequences; raise --gen-len")
    return full


def _step(engine: Engine, waiting: "deque[Request]", host: HostTime) -> DecodePass | None:
    """A pass; None where it was of prompts."""
    slots = engine.memory.slots
    before, late = (slots.cache.stats, slots.late) if slots is not None else (None, 0)
    began = time.perf_counter()
    engine.step(waiting)
    seconds, result, spent = time.perf_counter() - began, engine.last_pass, host.take()
    assert result is not None
    if any(rows.is_prefill for rows in result.batch.rows):
        return None
    counts = slots.cache.stats.since(before) if slots is not None and before is not None else None
    late = slots.late - late if slots is not None else 0
    return DecodePass(seconds, len(result.slots), counts, late, result.batch.slice, spent)


def speed_of(passes: list[DecodePass]) -> dict[str, Any]:
    return {
        "passes": len(passes),
        "seconds_per_pass": [p.seconds for p in passes],
        "median_seconds": statistics.median(p.seconds for p in passes),
        "sequences": passes[0].sequences,
        "tokens_per_s": sum(p.sequences for p in passes) / sum(p.seconds for p in passes),
    }


def cache_of(engine: Engine, passes: list[DecodePass]) -> dict[str, Any]:
    counted = [p.counts for p in passes if p.counts is not None]
    if not counted:
        return {}
    totals = {name: sum(int(getattr(c, name).sum()) for c in counted) for name in vars(counted[0])}
    return {
        "slots": len(engine.memory.slots.memory) if engine.memory.slots is not None else 0,
        "hit_rate": totals["hits"] / totals["demanded"],
        "late_share_of_hits": sum(p.late for p in passes) / max(1, totals["hits"]),
        "experts_per_pass": {name: total / len(counted) for name, total in totals.items()},
    }

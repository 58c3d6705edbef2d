"""`hrm run --trace-routing`: which experts every token chose, into a file when the run ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import HrmError

if TYPE_CHECKING:
    from runtime.experts.recorder import RoutingRecorder


@contextmanager
def recorded_routing(path: Path | None) -> Iterator[RoutingRecorder | None]:
    """A recorder whose trace is written at the end, an error or a keyboard interrupt included; None without a path.

    Raises:
        WorkloadError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    from runtime.experts.recorder import RoutingRecorder

    recorder = RoutingRecorder()
    try:
        yield recorder
    except (HrmError, KeyboardInterrupt):
        _write(recorder, path)
        raise
    _write(recorder, path)


def _write(recorder: RoutingRecorder, path: Path) -> None:
    from hrm.predict.routing_trace_file import save_routing_trace

    trace = recorder.trace()
    if trace is None:
        print(f"{path} is not written: no pass was run", file=sys.stderr)
        return
    save_routing_trace(trace, path)
    tokens, prompts = len(trace.prompt), len(set(trace.prompt.tolist()))
    print(f"Wrote {path}: routing of {tokens:,} tokens of {prompts:,} requests that this run carried", file=sys.stderr)

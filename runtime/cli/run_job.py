"""The steps of `hrm run`: output, model and requests, policy, engine, results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hrm.errors import RequestError

if TYPE_CHECKING:
    from hrm.spec.policy import Policy
    from runtime.cli.run_loop import Counts, Engine
    from runtime.cli.run_options import RunOptions
    from runtime.cli.run_policy import ChosenPolicy
    from runtime.cli.run_report import RunSummary
    from runtime.cli.run_source import RunSource
    from runtime.requests.entry import Entry
    from runtime.requests.identity import RunIdentity
    from runtime.requests.output_file import OutputFile
    from runtime.requests.request import Refusal, Request

    MakeEngine = Callable[[RunSource, Policy, str], Engine]  # of the device's name


def run_job(options: RunOptions, entries: tuple[Entry, ...] | None, make_engine: MakeEngine) -> RunSummary:
    """The whole run; its output is opened before anything that takes long.

    entries: of --input, None for random ones.

    Raises:
        HrmError: whatever cannot be opened, fits nowhere or cannot be written; what is finished is kept.
    """
    from hrm.predict.routing_checks import moe_kind
    from runtime.cli.run_source import open_source
    from runtime.device import choose_device

    with _output(options) as output:
        source = open_source(options, entries)
        if options.trace_routing is not None:
            moe_kind(source.weights.spec, "--trace-routing")
        device = choose_device(options.device).type
        earlier = output.earlier.policy if output is not None and output.earlier is not None else None
        identity = _identity(source, device, earlier or {})
        if output is not None:
            output.check(identity)  # before a search, and before its answers are set against other requests
        waiting = _waiting(source, output)
        chosen = _choose(options, earlier, source, waiting)
        if output is not None:
            output.begin(replace(identity, policy=chosen.policy.model_dump(mode="json")))
        return _answer(source, output, chosen, waiting, device, make_engine)


@contextmanager
def _output(options: RunOptions) -> Iterator[OutputFile | None]:
    """The file of results; None where nothing is kept."""
    from runtime.requests.output_file import OutputFile

    if options.output is None:
        yield None
        return
    with OutputFile(options.output, options.mode) as output:
        try:
            yield output
        except KeyboardInterrupt:
            print(f"{options.output} keeps what is finished; continue with --resume", file=sys.stderr)
            raise


def _waiting(source: RunSource, output: OutputFile | None) -> tuple[Request | Refusal, ...]:
    """What earlier attempts have not answered.

    Raises:
        RequestError: the output answers a request that the input does not hold.
    """
    finished = frozenset() if output is None else output.finished
    strangers = finished - {entry.request_id for entry in source.entries}
    if strangers and output is not None:
        raise RequestError(
            f"{output.path}: answers {min(strangers)!r}, which the input does not ask; give the input it belongs to, "
            "or start again with --overwrite"
        )
    both = zip(source.entries, source.requests, strict=True)
    return tuple(request for entry, request in both if entry.request_id not in finished)


def _choose(
    options: RunOptions, earlier: Mapping[str, Any] | None, source: RunSource, waiting: Sequence[Request | Refusal]
) -> ChosenPolicy:
    from runtime.cli.run_policy import choose_policy
    from runtime.requests.request import Request

    able = [request for request in waiting if isinstance(request, Request)]
    return choose_policy(options, earlier, source.weights.spec, able)


def _identity(source: RunSource, device: str, policy: Mapping[str, Any]) -> RunIdentity:
    from runtime.requests.identity import RunIdentity, hash_prompts, hash_sampling

    prompts, sampling = hash_prompts(source.entries), hash_sampling(source.entries)
    return RunIdentity(prompts, sampling, source.model_hash, source.weights.spec.dtype, device, policy)


def _answer(
    source: RunSource,
    output: OutputFile | None,
    chosen: ChosenPolicy,
    waiting: tuple[Request | Refusal, ...],
    device: str,
    make_engine: MakeEngine,
) -> RunSummary:
    """Writes what was refused already, then runs the rest."""
    from runtime.cli.run_loop import Counts, ResultWriter, answer_all
    from runtime.requests.request import Refusal

    forms = {entry.request_id: entry.form for entry in source.entries}
    writer = ResultWriter(forms, source.weights.config.name, None if output is None else output.append)
    counts, able, earlier = Counts(), [], len(source.entries) - len(waiting)
    for request in waiting:
        if isinstance(request, Refusal):
            writer.write(request)
            counts.add(request)
        else:
            able.append(request)
    if not able:
        return _summary(source, device, chosen, counts, None, earlier)
    with closing(make_engine(source, chosen.policy, device)) as engine:
        answer_all(engine, tuple(able), writer, counts, chosen.predicted_tokens_per_s)
        return _summary(source, device, chosen, counts, engine, earlier)


def _summary(
    source: RunSource, device: str, chosen: ChosenPolicy, counts: Counts, engine: Engine | None, earlier: int
) -> RunSummary:
    from runtime.cli.run_report import RunSummary

    progress = None if engine is None else engine.progress
    return RunSummary(
        model_name=source.weights.config.name,
        device=device,
        policy=chosen.policy,
        predicted_tokens_per_s=chosen.predicted_tokens_per_s,
        unpredicted=chosen.unpredicted,
        finished=counts.finished,
        refused=counts.refused,
        earlier=earlier,
        generated_tokens=0 if progress is None else progress.generated_tokens,
        passes=0 if progress is None else progress.passes,
        seconds=0.0 if progress is None else progress.seconds,
        timeline=None if engine is None else engine.last_timeline,
    )

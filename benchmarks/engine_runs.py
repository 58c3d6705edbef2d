"""Drives the engine pass by pass: decode passes of a full batch, and requests from first to last token."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pass_window import PassWindow, Sample

from hrm.errors import HrmError
from hrm.predict.simulate import Simulator
from runtime.engine import Engine
from runtime.requests.random_prompts import random_requests
from runtime.requests.request import Request, Sampling
from runtime.scheduler import admit, refusal

FILL_CHUNKS = 16  # chunks of prompts per pass while filling, where hidden states go to CPU memory
FILL_WHOLE_BATCH = 8192  # prompt tokens per pass while filling, where those of the whole batch stay on the GPU
FULL = 0.98  # share of the most sequences in flight that counts as a full batch
MOST_POINTS = 200  # of throughput over time
TELL_SECONDS = 10.0  # between lines of progress


@dataclass(frozen=True)
class Run:
    """An engine, the simulator of its machine, and what is asked."""

    engine: Engine
    simulator: Simulator
    lengths: Sequence[int]
    gen_len: int
    num_requests: int

    def requests(self, lengths: Sequence[int], count: int, gen_len: int) -> list[Request]:
        """`count` random prompts of these lengths in turn, each to its full length."""
        sampling = Sampling(gen_len, ignore_eos=True)
        entries = random_requests(lengths, count, self.engine.config.vocab_size, sampling)
        return [Request(e.request_id, e.prompt, e.sampling) for e in entries if isinstance(e.prompt, tuple)]

    def window(self) -> PassWindow:
        """Passes to be measured."""
        return PassWindow(self.engine.device, self.simulator, self.engine.policy)

    def step(self, waiting: deque[Request]) -> Sample:
        """One pass."""
        began = time.perf_counter()
        self.engine.step(waiting)
        ended = time.perf_counter()
        run, result = self.engine.runner.last_run, self.engine.last_pass
        assert run is not None and result is not None
        return Sample(run, result.batch.slice, began, ended)


@dataclass(frozen=True)
class Filling:
    """How a batch is filled: portions of requests, a pass each, so that nobody has ended when the last is measured."""

    portions: tuple[list[Request], ...]


def plan_filling(run: Run, measured: int, fill_tokens: int | None) -> Filling:
    """Prompts longer than asked by the tokens that sequences of a long run have generated on average, 0 to gen_len.

    Raises:
        HrmError: filling and measuring take more passes than a request has tokens.
    """
    policy, count = run.engine.policy, min(run.engine.policy.batch_size, run.num_requests)
    whole = policy.ffn_batching == "batch"
    per_pass = fill_tokens or (FILL_WHOLE_BATCH if whole else FILL_CHUNKS * policy.prefill_chunk_tokens)
    mean = sum(run.lengths) / len(run.lengths) + run.gen_len / 2
    passes = -(-round(count * mean) // per_pass) if policy.mixed_prefill else 1
    needed = passes + measured + 1
    if needed > run.gen_len:
        raise HrmError(f"--gen-len {run.gen_len}: {needed} passes are run; raise it or --fill-tokens")
    oldest = max(0, run.gen_len - 2 * needed)
    ages = [oldest * i // max(1, count - 1) for i in range(count)]
    # ages in another order than lengths, which repeat
    aged = [run.lengths[i % len(run.lengths)] + ages[i * 7919 % count] for i in range(count)]
    requests = run.requests(aged, count, needed)
    return Filling(tuple(requests[i::passes] for i in range(passes)))


def fill(run: Run, filling: Filling) -> int:
    """Prefills everybody; the number that found room."""
    engine = run.engine
    engine.make_room([request for portion in filling.portions for request in portion])
    at_once = engine.policy.model_copy(update={"ffn_batching": "micro_batch"})  # admits all that fit
    taken = 0
    for portion in filling.portions:
        waiting = deque(portion)
        if engine.policy.mixed_prefill:
            admit(engine.table, waiting, at_once, engine.memory.kv.pools)
            engine.step(deque())
        else:
            engine.step(waiting)
        taken += len(portion) - len(waiting)
    return taken


def decode_run(run: Run, passes: int, warmup: int, fill_tokens: int | None) -> dict[str, Any]:
    """`passes` decode passes of the filled batch."""
    filling = plan_filling(run, passes + warmup, fill_tokens)
    began = time.perf_counter()
    taken = fill(run, filling)
    filled = time.perf_counter()
    print(f"{taken} sequences prefilled in {filled - began:.1f} s", flush=True)
    for _ in range(warmup):
        run.step(deque())
    window = run.window()
    for _ in range(passes):
        window.samples.append(run.step(deque()))
    report = window.report()
    return {"batch": taken, "fill_seconds": filled - began, "tokens_per_s": report["tokens_per_s"], "window": report}


def end_to_end_run(run: Run, passes: int) -> dict[str, Any]:
    """All requests to their last token; the window holds the last passes that decoded a full batch. Interrupted
    (Ctrl-C), it reports what has run, and says so.
    """
    requests = run.requests(run.lengths, run.num_requests, run.gen_len)
    began = time.perf_counter()
    run.engine.make_room(requests)
    room_seconds = time.perf_counter() - began
    print(f"KV cache in place in {room_seconds:.1f} s", flush=True)
    pools, most = run.engine.memory.kv.pools, run.engine.config.max_position_embeddings
    waiting = deque(r for r in requests if refusal(r, run.engine.policy, pools, most) is None)
    refused = len(requests) - len(waiting)
    window, points, interrupted = run.window(), list[dict[str, float]](), False
    started = time.perf_counter()
    try:
        for sample in _all_passes(run, waiting):
            points.append(_point(run, sample, started))
            _keep(window, sample, points, passes)
            _tell(points)
    except KeyboardInterrupt:
        interrupted = True
    seconds = points[-1]["seconds"] if points else time.perf_counter() - started
    progress = run.engine.progress
    return {
        "batch": max((p["decoding"] for p in points), default=0),
        "requests": len(requests),
        "finished": progress.finished,
        "refused": refused,
        "interrupted": interrupted,
        "kv_cache_seconds": room_seconds,
        "seconds": seconds,
        "passes": progress.passes,
        "generated_tokens": progress.generated_tokens,
        "tokens_per_s": progress.generated_tokens / seconds,
        "over_time": points[:: -(-len(points) // MOST_POINTS) or 1],
        "window": window.report(),
    }


def _all_passes(run: Run, waiting: deque[Request]) -> Iterator[Sample]:
    while waiting or run.engine.progress.active:
        yield run.step(waiting)


def _keep(window: PassWindow, sample: Sample, points: list[dict[str, float]], passes: int) -> None:
    """The last consecutive passes with a full batch."""
    full = FULL * max(point["decoding"] for point in points)
    if sample.decoding >= full:
        went_on = len(points) > 1 and points[-2]["decoding"] >= full
        window.samples = [*(window.samples if went_on else []), sample][-passes:]


def _tell(points: list[dict[str, float]]) -> None:
    """A line now and then."""
    now, before = points[-1]["seconds"], points[-2]["seconds"] if len(points) > 1 else -TELL_SECONDS
    if now // TELL_SECONDS > before // TELL_SECONDS:
        latest = f"{points[-1]['pass_seconds']:.3f} s for {points[-1]['decoding']:,} sequences"
        print(f"{now:.0f} s: pass {len(points)}, {latest}", flush=True)


def _point(run: Run, sample: Sample, started: float) -> dict[str, float]:
    tokens, prompts = run.engine.progress.generated_tokens, sum(mb.prompt_tokens for mb in sample.work.micro_batches)
    at = {"seconds": sample.ended - started, "generated_tokens": tokens, "decoding": sample.decoding}
    return {**at, "prompt_tokens": prompts, "pass_seconds": sample.ended - sample.began}

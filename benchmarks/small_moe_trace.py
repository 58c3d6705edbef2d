"""Routing traces of the small model: the engine generates from held-out prompts, and what its routers chose is kept."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_moe_corpus import Corpus

from hrm.errors import HrmError
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import save_routing_trace
from hrm.spec.policy import Policy
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.engine import Engine
from runtime.experts.recorder import RoutingRecorder
from runtime.requests.request import Completion, Request, Sampling

SHORTEST, LONGEST = 32, 96  # tokens of a prompt
TOP_P = 0.95


@dataclass(frozen=True, eq=False)
class Recorded:
    """A trace, the domain of every prompt in it, and how it was sampled."""

    trace: RoutingTrace
    domains: tuple[str, ...]
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids from somewhere in a document of that domain."""

    domain: str
    tokens: tuple[int, ...]


def choose_prompts(corpus: Corpus, count: int, seed: int) -> list[Prompt]:
    """Equally many of every domain, domains in turn, documents of a domain in turn, lengths and places by the seed.

    Raises:
        HrmError: a domain without a document that is long enough.
    """
    random = np.random.default_rng(seed)
    prompts = []
    for i in range(count):
        index, turn = i % len(corpus.domains), i // len(corpus.domains)
        documents = [d for d in corpus.of_domain(index) if len(d) > LONGEST]
        if not documents:
            raise HrmError(f"held-out text: no {corpus.domains[index]} document of {LONGEST} tokens; prepare more text")
        prompts.append(Prompt(corpus.domains[index], _cut(documents[turn % len(documents)], random)))
    return prompts


def _cut(tokens: NDArray[np.uint16], random: np.random.Generator) -> tuple[int, ...]:
    length = int(random.integers(SHORTEST, LONGEST + 1))
    start = int(random.integers(0, len(tokens) - length + 1))
    return tuple(tokens[start : start + length].tolist())


def record(model: Path, corpus: Corpus, count: int, gen_len: int, temperature: float, seed: int) -> Recorded:
    """Runs the engine on the CPU, computing in fp32 so that sharing a batch cannot change a choice of experts.

    Gate weights are left out to keep the file small.

    Raises:
        HrmError: too little text. CheckpointError: no checkpoint. WorkloadError: as `check_trace`.
    """
    checkpoint = Checkpoint.open(model, torch.float32)
    prompts = choose_prompts(corpus, count, seed)
    requests = [
        Request(str(i), p.tokens, Sampling(gen_len, temperature, TOP_P, seed=seed + i, ignore_eos=True))
        for i, p in enumerate(prompts)
    ]
    recorder = RoutingRecorder()
    with Engine(checkpoint, _resident(32, 2), device="cpu", recorder=recorder) as engine:
        done = [each for each in engine.generate(requests) if isinstance(each, Completion)]
    found = recorder.trace()
    if found is None or len(done) != count:
        raise HrmError(f"trace: {len(done)} of {count} prompts were answered; prompt and --gen-len exceed the context")
    trace = replace(found, gate_weights=None)
    check_trace(trace, checkpoint.spec)
    sampling = {"temperature": temperature, "top_p": TOP_P, "seed": seed, "gen_len": gen_len}
    return Recorded(trace, tuple(p.domain for p in prompts), sampling)


def save_trace(recorded: Recorded, directory: Path, name: str) -> str:
    """Writes NAME.npz and NAME.json; returns what there is to say of them."""
    directory.mkdir(parents=True, exist_ok=True)
    path, trace = directory / f"{name}.npz", recorded.trace
    save_routing_trace(trace, path)
    record = {"model": trace.model, "sampling": recorded.sampling, "domain_of_prompt": recorded.domains}
    (directory / f"{name}.json").write_text(json.dumps(record) + "\n")
    size = path.stat().st_size / 1e6
    return f"{path}: {len(recorded.domains):,} prompts, {len(trace.prompt):,} tokens, {size:.2f} MB"


def _resident(micro_batch_size: int, num_micro_batches: int) -> Policy:
    """Nothing is offloaded: the trace does not depend on the policy."""
    batch = micro_batch_size * num_micro_batches
    return Policy(
        schedule="flexgen",
        batch_size=batch,
        micro_batch_size=micro_batch_size,
        ffn_batch_size=micro_batch_size,
        ffn_batching="micro_batch",
        attention_on_gpu=1.0,
        kv_on_gpu=1.0,
        attention_place="resident",
        experts_on_gpu=1.0,
        weights_on_gpu=1.0,
        dense_weights_on_gpu=1.0,
        weights_on_disk=0.0,
        mixed_prefill=False,
        prefill_chunk_tokens=4096,
        page_pool_bytes=0.0,
        tensor_parallel_size=1,
    )

"""What the modes of `expert_cache.py` share: model, recorded routing and predictions, requests, policies."""

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from scaled_routing import scale_of, scaled_replay

from hrm.predict.path_predictions import ExpectedDemand, PathPredictions
from hrm.predict.routing_predictions import load_predictions
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from hrm.spec.policy import Policy
from hrm.spec.units import parse_quantity
from runtime.batch import Batch
from runtime.checkpoint.synthetic import SyntheticCheckpoint, synthetic_checkpoint
from runtime.dtypes import torch_dtype
from runtime.experts.last_paths import last_paths
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_file import load_predictor
from runtime.experts.replay import RoutingReplay
from runtime.passes import Forecast
from runtime.requests.random_prompts import random_requests
from runtime.requests.request import Request, Sampling
from runtime.sequences import SequenceTable

ON_CPU = "_cpu"  # ends the names of modes that leave missed experts to the CPU


@dataclass(frozen=True)
class Setting:
    """What all modes share. prompt_lens: of the requests, of which each generates gen_len tokens."""

    model: SyntheticCheckpoint
    replay: RoutingReplay
    forecast: Forecast
    prompt_lens: tuple[int, ...]
    gen_len: int
    batch: int
    slots: float
    device: str
    gpu_memory: float | None


def policy_of(mode: str, setting: Setting, copied: float = 1.0) -> Policy:
    """Attention and KV cache on the GPU; experts as the mode has them. copied: share of missed experts, where the CPU
    computes the others.
    """
    cache = "predictive" if mode.startswith("units") else mode.removesuffix(ON_CPU)
    loads = mode in ("load_everything", "streaming")
    size = setting.batch
    return Policy(
        schedule="layer_streaming" if loads else "expert_cache", batch_size=size, micro_batch_size=size,
        ffn_batch_size=size, attention_on_gpu=1.0, experts_on_gpu=copied,
        weights_on_gpu=0.0 if mode == "load_everything" else setting.slots,
        kv_on_gpu=1.0, dense_weights_on_gpu=1.0, weights_on_disk=0.0, attention_place="resident",
        ffn_batching="micro_batch", mixed_prefill=False, prefill_chunk_tokens=1024, page_pool_bytes=0.0,
        tensor_parallel_size=1, hidden_states_by="kernel", expert_cache="rows" if loads else cache,  # type: ignore[arg-type]
    )  # fmt: skip


def requests_of(setting: Setting, count: int) -> list[Request]:
    """Random prompts of the recorded lengths."""
    sampling = Sampling(setting.gen_len, ignore_eos=True)
    entries = random_requests(setting.prompt_lens, count, setting.model.config.vocab_size, sampling)
    return [Request(str(i), e.prompt, sampling) for i, e in enumerate(entries) if isinstance(e.prompt, tuple)]


@dataclass(frozen=True)
class Inputs:
    """What runs of all sizes share. forecaster: whose time is part of every pass, or None."""

    model: SyntheticCheckpoint
    trace: RoutingTrace
    predictions: PathPredictions | None
    forecaster: RoutingPredictor | None


def open_inputs(args: argparse.Namespace) -> Inputs:
    """Model, recorded routing and predictions. Raises HrmError."""
    model = synthetic_checkpoint(args.synthetic, args.layers, 0, torch_dtype(args.dtype) if args.dtype else None)
    trace = load_routing_trace(args.trace, None)
    predictions = None if args.predictions is None else load_predictions(args.predictions, trace)
    forecaster = None
    if args.predictor is not None:
        forecaster = load_predictor(args.predictor, torch.device(args.device)).predictor
    return Inputs(model, trace, predictions, forecaster)


def make_setting(inputs: Inputs, args: argparse.Namespace, batch: int, slots: float) -> Setting:
    """Routing and requests of one size. Raises WorkloadError for a trace of too few prompts."""
    config = inputs.model.config
    scale = scale_of(inputs.trace, sum(config.moe_layers), config.num_experts, config.top_k)
    requests = batch * (2 if any(mode.startswith("units") for mode in args.modes) else 1)
    replay, lengths = scaled_replay(inputs.trace, inputs.predictions, scale, requests)
    prompts = tuple(max(1, length - args.gen_len) for length in lengths)
    limit = None if args.gpu_memory is None else parse_quantity(args.gpu_memory, "bytes", "--gpu-memory")
    forecast: Forecast = replay if inputs.forecaster is None else costed(replay, inputs.forecaster)
    return Setting(inputs.model, replay, forecast, prompts, args.gen_len, batch, slots, args.device, limit)


@dataclass
class Timed:
    """A forecast, and what each of its calls took, in seconds."""

    forecast: Forecast
    seconds: list[float] = field(default_factory=list)

    def __call__(self, batch: Batch, table: SequenceTable) -> ExpectedDemand:
        """What the forecast says."""
        began = time.perf_counter()
        found = self.forecast(batch, table)
        self.seconds.append(time.perf_counter() - began)
        return found


def costed(replay: RoutingReplay, predictor: RoutingPredictor) -> Forecast:
    """The recorded predictions, after the time that the predictor takes for as many tokens."""

    paths = last_paths(predictor)

    def forecast(batch: Batch, table: SequenceTable) -> ExpectedDemand:
        paths([np.ones(int(at) + 1, np.int64) for rows in batch.rows for at in rows.positions])
        return replay(batch, table)

    return forecast

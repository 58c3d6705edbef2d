"""Decode throughput with experts cached on the GPU, against loading every layer, on recorded routing.

python benchmarks/expert_cache.py --synthetic qwen3-30b-a3b --profile this-machine.yaml --trace traces/test.npz \
    --predictions predictions.npz --batch 16 32 --slots 0.25 0.5 --output benchmarks/results/NAME.json

Weights are random; which experts a token takes comes from the trace (`scaled_routing.py`), and so do the predictions,
with the predictor's real mistakes. Modes: `load_everything` streams all experts of every layer; `streaming` those that
do not fit in the memory that the caches have; lru, lfu: fetched after the router; predictive: copied by prediction
and corrected; lru_cpu, predictive_cpu: the same, and only a share of what the router misses is copied, the experts of
the fewest tokens are computed on the CPU (--experts-on-gpu, or the share at which a decode pass is fastest in
simulation, for a replay of the same routing); `units`: two batches in turns, as they come and regrouped by predicted
paths, so with twice the requests. A hit is an expert that has a slot when the
router chooses it; late hits are those whose copy had yet to arrive. With --predictor its time is part of every pass.
Predicted: the simulator with the run's own counts, and what the run's forecasts took before its passes. Host seconds
are of a layer, by thread and kind of task (`host_time.py`). With --simulate nothing is run: decode passes are
simulated, for a replay of the same routing.
"""

import argparse
import gc
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from expert_cache_passes import DecodePass, cache_of, decode_passes, speed_of
from expert_cache_setting import ON_CPU, Inputs, Setting, Timed, make_setting, open_inputs, policy_of, requests_of
from expert_cache_share import simulated_best, simulated_shares
from gpu_machine import describe_machine
from host_time import mean_by_layer

from hrm.errors import HrmError
from hrm.predict.cache_plan import CacheCounts
from hrm.predict.predicted_cache_stats import stats_of_counts
from hrm.predict.simulate import Simulator
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.policy import Policy
from hrm.spec.workload import make_workload
from runtime.engine import Engine
from runtime.experts.units import Units
from runtime.memory.host_buffer import kept_mappings

MODES = (
    "load_everything", "streaming", "lru", "lfu", "predictive", "lru_cpu", "predictive_cpu", "units", "units_regrouped",
)  # fmt: skip
IGNORE_SLOTS = ("load_everything",)  # run once for a batch size


def run(mode: str, setting: Setting, simulator: Simulator, warmup: int, copied: float | None) -> dict[str, Any]:
    """Decode passes of full batches after the first ones. copied: share of missed experts; None: the best simulated."""
    shares: dict[float, float] = {}
    if mode.endswith(ON_CPU) and copied is None:
        shares = simulated_shares(mode, setting, simulator)
        copied = min(shares, key=lambda share: shares[share])
    policy, units = policy_of(mode, setting, copied if mode.endswith(ON_CPU) and copied is not None else 1.0), None
    if mode.startswith("units"):
        units = Units(setting.batch, setting.replay.paths if mode == "units_regrouped" else None)
    on_gpu = setting.device.startswith("cuda")
    began = time.perf_counter()
    forecast = Timed(setting.forecast) if policy.expert_cache == "predictive" else None
    engine = Engine(setting.model, policy, setting.device, setting.gpu_memory, forecast=forecast, units=units)
    loaded = time.perf_counter() - began
    with engine:
        engine.runner.replay, engine.runner.timed = setting.replay, False
        setting.replay.check(engine.config)
        waiting = deque(requests_of(setting, setting.batch * (2 if units else 1)))
        engine.make_room(list(waiting))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        passes = decode_passes(engine, waiting, warmup)
        found = {"load_seconds": loaded, **speed_of(passes), **cache_of(engine, passes), **_memory(engine, on_gpu)}
        found |= {"experts_on_gpu": policy.experts_on_gpu, "simulated_seconds_by_share": shares}
        found["host_seconds_per_layer"] = mean_by_layer([p.host for p in passes], engine.config.num_layers)
        before = statistics.fmean(forecast.seconds[-len(passes) :]) if forecast is not None else 0.0
        return found | _predicted(engine, simulator, policy, passes, before)


def _memory(engine: Engine, on_gpu: bool) -> dict[str, Any]:
    parts = engine.memory.gpu_parts
    whole = engine.layout.sizes.expert_bytes + engine.layout.sizes.dense_bytes
    peak = torch.cuda.max_memory_allocated() if on_gpu else sum(parts.values())
    return {"gpu_parts": parts, "gpu_peak_bytes": peak, "full_residency_bytes": whole, "below_full": 1 - peak / whole}


def _predicted(
    engine: Engine, simulator: Simulator, policy: Policy, passes: list[DecodePass], forecast_seconds: float
) -> dict[str, Any]:
    """The simulation of the median pass's slice, with mean counts of all and what the forecasts took."""
    middle = sorted(passes, key=lambda p: p.seconds)[len(passes) // 2]
    counted = [p.counts for p in passes if p.counts is not None]
    stats = None
    if counted:
        total = CacheCounts(*(sum(getattr(c, name) for c in counted) for name in vars(counted[0])))
        stats = stats_of_counts(total, len(counted), engine.config.num_experts, engine.layout.sizes.model)
        stats = replace(stats, forecast_seconds=forecast_seconds)
    seconds = simulator.pass_seconds(policy, middle.work, stats)
    mean = statistics.fmean(p.seconds for p in passes)
    found = {"predicted_seconds": seconds, "measured_seconds": mean, "error": seconds / mean - 1}
    found |= {
        "context": middle.work.micro_batches[0].context_len,
        "cache_stats": None if stats is None else vars(stats),
    }
    return found | {"forecast_seconds": forecast_seconds}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", default="qwen3-30b-a3b", help="shipped model, or a config.json")
    parser.add_argument("--layers", type=int, help="only the first so many")
    parser.add_argument("--dtype")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu-memory", help="such as 8GiB; held to by the allocator")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, help="of the trace (hrm predictor evaluate --predictions)")
    parser.add_argument("--predictor", type=Path, help="run too, so that its time counts")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--slots", type=float, nargs="+", default=[0.25], help="shares of all experts")
    parser.add_argument("--experts-on-gpu", type=float, help="share of missed experts copied in the modes with _cpu")
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=4, help="decode passes before those that count")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--simulate", action="store_true", help="no runs: decode passes simulated, anywhere")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """All runs, one file; what fails is named and the rest goes on."""
    args = arguments()
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    report: dict[str, Any] = {"benchmark": "expert_cache", **describe_machine(args.device), "settings": options}
    report["runs"] = runs = []
    try:
        inputs = open_inputs(args)
        with kept_mappings():
            for found in run_all(args, inputs):
                runs.append(found)
                print(describe(found), flush=True)
                if args.output:
                    args.output.write_text(json.dumps(report, indent=1) + "\n")
    except HrmError as error:
        raise SystemExit(f"expert_cache: {error}") from None


def run_all(args: argparse.Namespace, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Every batch size, share of slots and mode."""
    for batch in args.batch:
        for slots in args.slots:
            setting = make_setting(inputs, args, batch, slots)
            mean = round(statistics.fmean(setting.prompt_lens))
            workload = make_workload(args.gen_len, mean, name="recorded", where="--trace")
            simulator = Simulator(make_rates(load_profile(args.profile), inputs.model.spec, workload))
            for mode in args.modes:
                if mode not in IGNORE_SLOTS or slots == args.slots[0]:
                    yield {"batch": batch, "slot_share": slots, "mode": mode} | attempt(args, mode, setting, simulator)
                    gc.collect()  # what the engine held serves the next one


def attempt(args: argparse.Namespace, mode: str, setting: Setting, simulator: Simulator) -> dict[str, Any]:
    """The run or its simulation, or why there is none."""
    try:
        if args.simulate:
            return dict(simulated_best(mode, setting, simulator))
        return run(mode, setting, simulator, args.warmup, args.experts_on_gpu)
    except (HrmError, torch.OutOfMemoryError) as error:
        return {"failed": str(error)}


def describe(found: dict[str, Any]) -> str:
    """One line."""
    head = f"batch {found['batch']}, slots {found['slot_share']:g}, {found['mode']}: "
    if "failed" in found:
        return f"{head}failed: {found['failed']}"
    if "simulated_seconds" in found:
        copied = f", {found['experts_on_gpu']:.2f} of the misses copied" if found["mode"].endswith(ON_CPU) else ""
        return f"{head}{found['tokens_per_s']:,.1f} tokens/s, {1e3 * found['simulated_seconds']:,.0f} ms a pass{copied}"
    hits = f", hit rate {found['hit_rate']:.1%}" if "hit_rate" in found else ""
    milliseconds = f"{1e3 * found['measured_seconds']:,.0f} ms a pass, predicted {found['error']:+.1%}"
    return f"{head}{found['tokens_per_s']:,.1f} tokens/s, {milliseconds}{hits}"


if __name__ == "__main__":
    main()

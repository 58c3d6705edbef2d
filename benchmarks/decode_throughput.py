"""Throughput of the engine on random weights: of decode passes in steady state, or of whole requests end to end.

python benchmarks/decode_throughput.py --synthetic mixtral-8x7b --profile h200-16gib --gpu-memory 16GiB \
    --mode decode --passes 8 --output benchmarks/results/decode_throughput.json

decode: fills the batch, its sequences as far along as those of a long run (mean context: prompt + half of gen_len),
then measures passes that only decode. end-to-end: runs all requests to their last token; the time is from the first
pass to the last token, prefill included and loading apart. The roof is the simulator's lower bound for the very passes
that ran: bytes and work over the profile's measured rates, whatever is busiest.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine_runs import Run, decode_run, end_to_end_run
from gpu_machine import describe_machine

from hrm.errors import HrmError
from hrm.predict.rates import Rates
from hrm.predict.requests import Request
from hrm.predict.simulate import Simulator
from hrm.search.refine import best_by_simulation
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.policy import Policy
from hrm.spec.policy_file import load_policy
from hrm.spec.units import parse_quantity
from hrm.spec.workload import workload_from_lengths
from hrm.spec.workload_file import load_workload
from runtime.checkpoint.synthetic import SyntheticCheckpoint, synthetic_checkpoint
from runtime.cli.run_search import search_for
from runtime.dtypes import DTYPES, torch_dtype
from runtime.engine import Engine
from runtime.profile_limits import capped
from runtime.requests.random_prompts import read_prompt_lengths


@dataclass(frozen=True)
class Setting:
    """What is run."""

    model: SyntheticCheckpoint
    rates: Rates
    policy: Policy
    lengths: tuple[int, ...]
    searched: bool


def read_bytes(text: str | None, option: str) -> float | None:
    """A memory size; None stays None."""
    return None if text is None else parse_quantity(text, "bytes", option)


def make_setting(args: argparse.Namespace) -> Setting:
    """Model, workload, and the policy: of --policy, or searched for --requests (without end where not given)."""
    model = synthetic_checkpoint(args.synthetic, args.layers, 0, torch_dtype(args.dtype) if args.dtype else None)
    lengths = load_workload(args.workload).prompt_lens if args.prompts is None else read_prompt_lengths(args.prompts)
    if not lengths:
        raise HrmError(f"--workload {args.workload}: states no single prompt lengths; use mtbench-questions")
    gpu, cpu = read_bytes(args.gpu_memory, "--gpu-memory"), read_bytes(args.cpu_memory, "--cpu-memory")
    profile = capped(load_profile(args.profile), gpu, cpu)
    workload = workload_from_lengths(lengths, args.gen_len, False, args.workload, "requests")
    rates = make_rates(profile, model.spec, workload)
    if args.policy is not None:
        policy = load_policy(args.policy)
    elif args.requests is None:
        policy = best_by_simulation(rates, args.schedule).policy
    else:
        asked = [Request(lengths[i % len(lengths)], args.gen_len) for i in range(args.requests)]
        policy = search_for(rates, args.schedule, asked)
    return Setting(model, rates, policy, lengths, args.policy is None)


def measure(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Loads and runs; out of memory on the GPU is a result too."""
    began = time.perf_counter()
    limit = read_bytes(args.gpu_memory, "--gpu-memory")
    engine = Engine(setting.model, setting.policy, args.device, limit)
    engine.runner.keep_runs = True
    load_seconds = time.perf_counter() - began
    print(f"weights loaded in {load_seconds:.1f} s", flush=True)
    simulator = Simulator(setting.rates.for_chunk(setting.policy.prefill_chunk_tokens))
    run = Run(engine, simulator, setting.lengths, args.gen_len, args.requests or setting.policy.batch_size)
    try:
        if args.mode == "decode":
            result = decode_run(run, args.passes, args.warmup, args.fill_tokens)
        else:
            result = end_to_end_run(run, args.passes)
        return {"load_seconds": load_seconds, "out_of_memory": False, **result, "memory": memory(engine)}
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
        return {"load_seconds": load_seconds, "out_of_memory": True, "error": message, "memory": memory(engine)}
    finally:
        engine.close()


def memory(engine: Engine) -> dict[str, Any]:
    """Bytes by part, the most that the GPU's allocator has given out and held, and how often it had to stop the device
    to give memory back before it could go on.
    """
    parts = {"gpu_parts": engine.memory.gpu_parts, "cpu_parts": engine.memory.cpu_parts}
    device = engine.device.torch_device
    if device.type != "cuda":
        return parts
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {
        **parts,
        "gpu_peak_allocated_bytes": allocated,
        "gpu_peak_reserved_bytes": reserved,
        "gpu_allocation_retries": torch.cuda.memory_stats(device).get("num_alloc_retries", 0),
    }


def describe(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Machine and settings."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    del options["output"]
    limit = read_bytes(args.gpu_memory, "--gpu-memory")
    on_gpu = args.device.startswith("cuda")
    return {
        "benchmark": "decode_throughput",
        "system": "hrm",
        **describe_machine(args.device),
        "gpu_memory_limit_bytes": limit if on_gpu else None,
        "gpu_memory_is_emulated": on_gpu and limit is not None,
        "profile": setting.rates.machine.profile.name,
        "settings": options,
        "policy": setting.policy.model_dump(mode="json"),
        "policy_is_searched": setting.searched,
        "mean_prompt_len": setting.rates.workload.prompt_len,
    }


def describe_result(result: dict[str, Any]) -> str:
    """One line."""
    if result["out_of_memory"]:
        return f"out of memory: {result['error']}"
    window = result.get("window") or {}
    text = f"{result['tokens_per_s']:,.1f} tokens/s"
    if not window:
        return text
    speeds = f"{window['tokens_per_s']:,.1f} of {window['roof_tokens_per_s']:,.1f} tokens/s"
    roof = f"{window['share_of_roof']:.1%} of the roof of {window['roof']['binding']}"
    htod = window["busy"].get("HTOD", 0.0)
    return f"{text}; window of {window['passes']} passes: {speeds} ({roof}), HTOD busy {htod:.1%}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", default="mixtral-8x7b", help="shipped model, or a config.json")
    parser.add_argument("--layers", type=int, help="only the first so many")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the config's")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gpu-memory", help="such as 16GiB; held to by the allocator")
    parser.add_argument("--cpu-memory", help="of the search; such as 120GiB")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--policy", type=Path, help="instead of a search")
    parser.add_argument("--mode", choices=["decode", "end-to-end"], default="decode")
    parser.add_argument("--passes", type=int, default=8, help="consecutive passes measured task by task")
    parser.add_argument("--warmup", type=int, default=2, help="decode: passes before them")
    parser.add_argument("--fill-tokens", type=int, help="decode: prompt tokens per pass while a mixed policy fills up")
    parser.add_argument("--requests", type=int, help="default: one batch")
    parser.add_argument("--workload", default="mtbench-questions", help="prompt lengths, taken in turn")
    parser.add_argument("--prompts", type=Path, help="JSON lines of texts instead; tokens are bytes / 4")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """One run, one file."""
    args = arguments()
    try:
        began = time.perf_counter()
        setting = make_setting(args)
        search_seconds = time.perf_counter() - began
        policy = setting.policy
        sizes = f"N {policy.batch_size}, mu {policy.micro_batch_size}"
        print(f"{policy.schedule}, {sizes} ({search_seconds:.1f} s)", flush=True)
        result = {"search_seconds": search_seconds, **measure(args, setting)}
    except HrmError as error:
        raise SystemExit(f"decode_throughput: {error}") from None
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"decode_throughput: no room for the weights on the GPU: {error}") from None
    print(describe_result(result))
    if args.output:
        args.output.write_text(json.dumps({**describe(args, setting), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()

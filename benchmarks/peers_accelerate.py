"""Decode throughput of Hugging Face transformers with accelerate's CPU offload, GPU memory held to a limit.

python benchmarks/peers_accelerate.py --default-batches 64 256 --pinned-batches 256 512 --prefill-split 128 \
    --output benchmarks/results/peers_accelerate.json

Shapes of Mixtral 8x7B, random weights, bf16. Modes:
  default  as a user gets it: accelerate infers the device map and moves pageable weights to the GPU before each module
  pinned   the same, weights page-locked by hand where they lie; accelerate copies them blocking in both modes
accelerate is told to use what KV cache and activations at that batch leave of the limit (or --max-memory): told the
whole limit it fills it with weights and runs out of memory. The KV cache stays on the GPU. Prompts are prefilled in
parts of --prefill-split sequences. Every decode step ends with a synchronise. --device cpu tries the script without a
GPU.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_machine import describe_machine
from peer_model import PeerModel, build_model
from peer_steps import forward, prefill, random_cache, timed

from hrm.errors import HrmError
from hrm.spec.units import parse_quantity
from runtime.dtypes import DTYPES, torch_dtype


def run_steps(model: PeerModel, args: argparse.Namespace, batch: int, steps: int, row: dict[str, Any]) -> None:
    """Prefill, warm-up and timed decode steps, written into `row` as they end."""
    prompts = torch.randint(0, model.config.vocab_size, (batch, args.prompt), device=model.device)
    if args.cache == "prefill":
        seconds, (tokens, cache) = timed(model.device, lambda: prefill(model, prompts, args.prefill_split))
        row["prefill_seconds"] = seconds
    else:
        tokens, cache = prompts[:, -1:], random_cache(model, batch, args.prompt)
    row["stage"] = "decode"
    for i in range(args.warmup + steps):
        seconds, tokens = timed(model.device, partial(forward, model, tokens, cache))
        if i >= args.warmup:
            row["step_seconds"].append(seconds)
    row["stage"] = "done"


def measure(model: PeerModel, args: argparse.Namespace, mode: str, batch: int, steps: int) -> dict[str, Any]:
    """One batch in one mode."""
    max_memory = max_weights(model, args, batch, steps)
    device_map = model.offload(max_memory)
    moved = model.offloaded_bytes(device_map)
    row: dict[str, Any] = {"mode": mode, "batch": batch, "stage": "prefill", "out_of_memory": False, "step_seconds": []}
    row |= {"max_memory_bytes": max_memory, "weight_bytes_per_pass": moved, "resident_bytes": model.total_bytes - moved}
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    try:
        with torch.inference_mode():
            run_steps(model, args, batch, steps, row)
    except torch.OutOfMemoryError as error:
        row |= {"out_of_memory": True, "error": str(error).splitlines()[0]}
    if model.device.type == "cuda":
        row["gpu_peak_allocated_bytes"] = torch.cuda.max_memory_allocated(model.device)
        row["gpu_peak_reserved_bytes"] = torch.cuda.max_memory_reserved(model.device)
    return row if row["out_of_memory"] else {**row, **summary(row, args.gen_len)}


def summary(row: dict[str, Any], gen_len: int) -> dict[str, Any]:
    """Throughputs; `generation_tokens_per_s` is that of the prefill and gen_len - 1 such steps."""
    step = statistics.mean(row["step_seconds"])
    batch, moved = row["batch"], row["weight_bytes_per_pass"]
    found = {"tokens_per_s": batch / step, "weight_bytes_per_s": moved / step}
    if "prefill_seconds" in row:
        found["generation_tokens_per_s"] = batch * gen_len / (row["prefill_seconds"] + (gen_len - 1) * step)
    return found


def max_weights(model: PeerModel, args: argparse.Namespace, batch: int, steps: int) -> int:
    """Bytes that accelerate is told to use for weights: --max-memory, or what the batch leaves of --gpu-memory."""
    if args.max_memory is not None:
        return int(parse_quantity(args.max_memory, "bytes", "--max-memory"))
    kv = model.kv_bytes(batch, args.prompt + args.warmup + steps + 1)
    prefilled = min(batch, args.prefill_split or batch) * args.prompt if args.cache == "prefill" else batch
    left = gpu_limit(args) - kv - model.activation_bytes(max(batch, prefilled))
    return max(1, int(left))


def gpu_limit(args: argparse.Namespace) -> float:
    """--gpu-memory in bytes."""
    return parse_quantity(args.gpu_memory, "bytes", "--gpu-memory")


def describe_row(row: dict[str, Any]) -> str:
    """One line."""
    head = f"{row['mode']:8} batch {row['batch']:4}  resident {row['resident_bytes'] / 1e9:5.1f} GB  "
    if row["out_of_memory"]:
        return f"{head}out of memory in {row['stage']}: {row['error']}"
    prefilled = f"prefill {row['prefill_seconds']:.1f} s, " if "prefill_seconds" in row else ""
    rate = row["weight_bytes_per_s"] / 1e9
    return f"{head}{row['tokens_per_s']:.1f} tokens/s ({prefilled}weights at {rate:.1f} GB/s)"


def measure_all(model: PeerModel, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every batch: first in pageable memory, then with the same memory page-locked."""
    for batch in args.default_batches:
        yield measure(model, args, "default", batch, args.default_steps)
    if args.pinned_batches:
        model.restore()
        seconds, _ = timed(model.device, model.lock)
        print(f"{model.total_bytes / 1e9:.1f} GB page-locked in {seconds:.1f} s", flush=True)
        for batch in args.pinned_batches:
            yield measure(model, args, "pinned", batch, args.pinned_steps)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mixtral-8x7b", help="shipped model, or a config.json")
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gpu-memory", default="16GiB", help="held to by the allocator")
    parser.add_argument("--max-memory", help="what accelerate is told, instead of what the batch leaves")
    parser.add_argument("--default-batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--pinned-batches", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--prompt", type=int, default=77)
    parser.add_argument("--gen-len", type=int, default=128, help="of the throughput with prefill, which is computed")
    parser.add_argument("--prefill-split", type=int, help="sequences prefilled at once; default: all")
    parser.add_argument("--cache", choices=["prefill", "random"], default="prefill", help="random: no prefill")
    parser.add_argument("--warmup", type=int, default=1, help="decode steps before those that are timed")
    parser.add_argument("--default-steps", type=int, default=3)
    parser.add_argument("--pinned-steps", type=int, default=6)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def write(args: argparse.Namespace, machine: dict[str, Any], model: PeerModel, rows: list[dict[str, Any]]) -> None:
    """All rows so far."""
    if args.output is None:
        return
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    data = {
        "benchmark": "peers_accelerate",
        "system": "Hugging Face accelerate",
        **machine,
        "gpu_memory_limit_bytes": gpu_limit(args) if model.device.type == "cuda" else None,
        "gpu_memory_is_emulated": model.device.type == "cuda",
        "experts_implementation": getattr(model.config, "_experts_implementation", None),
        "attention_implementation": getattr(model.config, "_attn_implementation", None),
        "settings": settings,
        "rows": rows,
    }
    args.output.write_text(json.dumps(data, indent=1) + "\n")


def main() -> None:
    """Builds the model once, and measures every batch."""
    args = arguments()
    try:
        device = torch.device(args.device)
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_limit(args) / total), device)
        seconds, model = timed(device, lambda: build_model(args.model, args.layers, torch_dtype(args.dtype), device))
        print(f"{model.total_bytes / 1e9:.1f} GB of weights written in {seconds:.1f} s", flush=True)
        machine, rows = describe_machine(args.device), []
        for row in measure_all(model, args):
            rows.append(row)
            print(describe_row(row), flush=True)
            write(args, machine, model, rows)
    except HrmError as error:
        raise SystemExit(f"peers_accelerate: {error}") from None


if __name__ == "__main__":
    main()

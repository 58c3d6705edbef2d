"""Times CPU decode attention over a paged KV cache, beside a plain read of memory (its bound).

python benchmarks/cpu_attention.py [--threads 1 16] [--batch 256] [--context 80 600] [--output results.json]

Prints GB/s of KV read, in all and per thread, for the compiled kernel and for SDPA. Contexts are uniform between the
two given numbers, blocks lie at random, and layers take turns so that no cache level holds what is read.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import this_machine
from torch import Tensor

from runtime.kernels.cpu_attention import Backend, attention_backend, build_failure, decode_attention


@dataclass(frozen=True)
class Case:
    """One layer's inputs, and the KV caches that take turns."""

    qkv: Tensor  # [B, N + 2 K, D]
    caches: list[Tensor]  # [blocks, 2, K, block, D] each
    block_table: Tensor  # [B, width]
    lengths: Tensor  # [B]
    out: Tensor  # [B, N, D]

    @property
    def bytes(self) -> int:
        """K and V read in one call."""
        return int(self.lengths.sum()) * 2 * self.caches[0].shape[2] * self.out.shape[2] * self.out.element_size()


def make_case(args: argparse.Namespace) -> Case:
    """Random K and V, in as many layers as `kv_gb` holds."""
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    lengths = torch.randint(args.context[0], args.context[-1] + 1, (args.batch,), dtype=torch.int32)
    width = -(-args.context[-1] // args.block)
    blocks = args.batch * width
    shape = (blocks, 2, args.kv_heads, args.block, args.head_dim)
    first = torch.randn(shape, dtype=dtype)
    layers = max(2, -(-int(args.kv_gb * 1e9) // (first.numel() * first.element_size())))
    return Case(
        qkv=torch.randn(args.batch, args.query_heads + 2 * args.kv_heads, args.head_dim, dtype=dtype),
        caches=[first, *(first.clone() for _ in range(layers - 1))],
        block_table=torch.randperm(blocks).int().reshape(args.batch, width),
        lengths=lengths,
        out=torch.empty(args.batch, args.query_heads, args.head_dim, dtype=dtype),
    )


def median_seconds(call: Callable[[int], None], seconds: float) -> float:
    """Median over calls with the index 0, 1, ... that fill about `seconds`, after three to warm up."""
    for index in range(3):
        call(index)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        started = time.perf_counter()
        call(len(times))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def attention_gb_per_s(case: Case, threads: int, backend: Backend, seconds: float) -> float:
    """KV bytes over time."""

    def call(index: int) -> None:
        kv = case.caches[index % len(case.caches)]
        scale = case.out.shape[2] ** -0.5
        decode_attention(case.qkv, kv, case.block_table, case.lengths, case.out, scale, threads, backend)

    return case.bytes / median_seconds(call, seconds) / 1e9


def read_gb_per_s(case: Case, threads: int, seconds: float) -> float:
    """A sum over each cache as fp32."""
    plain = [cache.flatten().view(torch.int32).view(torch.float32) for cache in case.caches]
    torch.set_num_threads(threads)

    def call(index: int) -> None:
        plain[index % len(plain)].sum()

    return plain[0].numel() * 4 / median_seconds(call, seconds) / 1e9


def measure(case: Case, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row per way of reading."""
    rates = {"plain read": read_gb_per_s(case, threads, seconds)}
    if not build_failure():
        rates["compiled"] = attention_gb_per_s(case, threads, "compiled", seconds)
    rates["sdpa"] = attention_gb_per_s(case, threads, "sdpa", seconds)
    for name, rate in rates.items():
        print(f"{threads:4} threads  {name:10}  {rate:7.1f} GB/s  {rate / threads:6.2f} GB/s per thread", flush=True)
    return [{"threads": threads, "way": name, "gb_per_s": rate} for name, rate in rates.items()]


def arguments() -> argparse.Namespace:
    """The command line; the shape is Mixtral 8x7B's without options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--context", type=int, nargs="+", default=[80, 600], help="one length, or the range")
    parser.add_argument("--query-heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument(
        "--kv-gb", type=float, default=4.0, help="memory of all caches together, beyond any cache level"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time of each row")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measures every thread count."""
    args = arguments()
    case = make_case(args)
    print(f"{this_machine()}, torch {torch.__version__}; backend in use: {attention_backend()} {build_failure()}")
    print(f"{len(case.caches)} layers, {case.bytes / 1e6:.0f} MB of KV in {args.dtype} per call")
    rows = [row for threads in args.threads for row in measure(case, threads, args.seconds)]
    if args.output:
        named = {name: value for name, value in vars(args).items() if name not in ("output", "threads")}
        args.output.write_text(json.dumps({"machine": this_machine(), **named, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

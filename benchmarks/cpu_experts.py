"""Times experts with few tokens on the CPU, beside a plain read of the same weights (their bound).

python benchmarks/cpu_experts.py [--threads 1 16] [--rows 1 2 4 8] [--experts 16] [--output results.json]

Prints GB/s of weights read for the compiled kernel and for a loop of PyTorch's matmuls, and their share of the plain
read. Each call takes the next experts of a pool that no cache level holds; each expert has the same number of rows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import this_machine
from torch import Tensor

from runtime.kernels.cpu_experts import Backend, build_failure, experts_backend, few_token_experts

SHAPES = {"qwen3-30b-a3b": (2048, 768), "mixtral-8x7b": (4096, 14336)}  # H, I


@dataclass(frozen=True)
class Pool:
    """Experts one after the other, [experts, 3 I H]: gate_up [2 I, H], then down [H, I]."""

    weights: Tensor
    hidden: int
    intermediate: int
    per_call: int

    @property
    def bytes(self) -> int:
        """Weights read in one call."""
        return self.per_call * self.weights.shape[1] * self.weights.element_size()

    def first(self, call: int) -> int:
        """Where the experts of a call begin."""
        return call % (len(self.weights) // self.per_call) * self.per_call

    def addresses(self, call: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[experts of a call, 2]."""
        itemsize, elements = self.weights.element_size(), self.weights.shape[1]
        gate_up = self.weights.data_ptr() + (self.first(call) + np.arange(self.per_call)) * elements * itemsize
        return np.stack([gate_up, gate_up + 2 * self.intermediate * self.hidden * itemsize], axis=1)


def make_pool(hidden: int, intermediate: int, args: argparse.Namespace) -> Pool:
    """As many experts as `pool_gb` holds, each of the same random numbers."""
    dtype = getattr(torch, args.dtype)
    elements = 3 * hidden * intermediate
    experts = max(1, int(args.pool_gb * 2**30) // (elements * dtype.itemsize))
    weights = torch.empty(experts, elements, dtype=dtype)
    weights[:] = torch.randn(elements).mul_(hidden**-0.5).to(dtype)
    return Pool(weights, hidden, intermediate, min(args.experts, experts))


def median_seconds(call: Callable[[int], None], numbers: "count[int]", seconds: float) -> float:
    """Median over calls that fill about `seconds`, after one to warm up."""
    call(next(numbers))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        number, started = next(numbers), time.perf_counter()
        call(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def expert_caller(pool: Pool, rows: int, threads: int, backend: Backend) -> Callable[[int], None]:
    """Computes the experts of a call, `rows` tokens each."""
    x = torch.randn(rows * pool.per_call, pool.hidden).to(pool.weights.dtype)
    out = torch.empty(len(x), pool.hidden)
    pairs = np.random.default_rng(0).permutation(len(x))
    starts = np.arange(pool.per_call + 1) * rows

    def call(number: int) -> None:
        few_token_experts(x, pairs, starts, pool.addresses(number), pool.intermediate, out, threads, backend)

    return call


def reader(pool: Pool) -> Callable[[int], None]:
    """Sums the weights of a call as fp32."""
    plain = pool.weights.view(torch.int32).view(torch.float32)

    def call(number: int) -> None:
        plain[pool.first(number) : pool.first(number) + pool.per_call].sum()

    return call


def measure(model: str, pool: Pool, rows: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row per way. The ways share one sequence of calls, so that none finds what it read last in a cache."""
    torch.set_num_threads(threads)
    numbers = count()
    calls = {"plain read": reader(pool), "torch": expert_caller(pool, rows, threads, "torch")}
    if not build_failure():
        calls["compiled"] = expert_caller(pool, rows, threads, "compiled")
    rates = {way: pool.bytes / median_seconds(call, numbers, seconds) / 1e9 for way, call in calls.items()}
    found = [
        {"model": model, "rows": rows, "threads": threads, "way": way, "gb_per_s": rate}
        | {"of_plain_read": rate / rates["plain read"]}
        for way, rate in rates.items()
    ]
    for row in found:
        print(
            f"{model:14}  {rows:3} rows  {threads:3} threads  {row['way']:10}  {row['gb_per_s']:7.1f} GB/s  "
            f"{row['of_plain_read']:4.0%} of the plain read",
            flush=True,
        )
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="tokens of each expert")
    parser.add_argument(
        "--experts", type=int, default=16, help="experts of a call, or all of the pool where it has less"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--pool-gb", type=float, default=4.0, help="GiB of weights, beyond any cache level")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time of each row")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measures every model, thread count and number of rows."""
    args = arguments()
    print(f"{this_machine()}, torch {torch.__version__}; backend in use: {experts_backend()} {build_failure()}")
    found: list[dict[str, Any]] = []
    for model in args.models:
        pool = make_pool(*SHAPES[model], args)
        print(f"{model}: {pool.per_call} of {len(pool.weights)} experts, {pool.bytes / 1e6:.0f} MB, {args.dtype}")
        for threads in args.threads:
            for rows in args.rows:
                found += measure(model, pool, rows, threads, args.seconds)
        del pool
    if args.output:
        options = {name: getattr(args, name) for name in ("experts", "dtype", "pool_gb", "seconds")}
        args.output.write_text(json.dumps({"machine": this_machine(), **options, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

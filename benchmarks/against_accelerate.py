"""The engine and Hugging Face accelerate on one machine, one after the other, under one limit of GPU memory.

python benchmarks/against_accelerate.py --profile this-machine.yaml --gpu-memory 16GiB --output benchmarks/results/NAME

Each runs in a process of its own, since both take nearly all of CPU memory: `decode_throughput.py` in both modes and
`peers_accelerate.py`. Writes NAME_decode.json, NAME_end_to_end.json and NAME_accelerate.json, and prints the table of
`runtime_table.py`. What fails is named, and the rest goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The script's arguments by the suffix of its result."""
    model = ["--synthetic", args.synthetic, "--profile", args.profile, "--gpu-memory", args.gpu_memory]
    model += ["--prompts", args.prompts] if args.prompts else ["--workload", args.workload]
    engine = ["decode_throughput.py", *model, "--gen-len", str(args.gen_len)]
    peers = ["peers_accelerate.py", "--model", args.synthetic, "--gpu-memory", args.gpu_memory]
    peers += ["--default-batches", *args.default_batches, "--pinned-batches", *args.pinned_batches]
    peers += ["--prefill-split", "64", "--cache", "random"]
    return {
        "decode": [*engine, "--mode", "decode", "--passes", "8"],
        "end_to_end": [*engine, "--mode", "end-to-end", "--requests", str(args.requests)],
        "accelerate": peers,
    }


def main() -> int:
    """Runs what is asked for; the number of parts that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--synthetic", default="mixtral-8x7b")
    parser.add_argument("--gpu-memory", required=True, help="held to by the allocator")
    parser.add_argument("--prompts", help="prompt texts, one JSON object a line; their lengths are bytes / 4")
    parser.add_argument("--workload", default="mtbench-questions")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--requests", type=int, default=1600, help="of the end-to-end run")
    parser.add_argument("--default-batches", nargs="*", default=["64", "256"])
    parser.add_argument("--pinned-batches", nargs="*", default=["256", "512"])
    parser.add_argument("--parts", nargs="*", default=["decode", "end_to_end", "accelerate"])
    parser.add_argument("--output", type=Path, required=True, help="beginning of the results' names")
    args = parser.parse_args()
    failed, written = 0, []
    for part in args.parts:
        result = args.output.with_name(f"{args.output.name}_{part}.json")
        script, *words = commands(args)[part]
        code = subprocess.call([sys.executable, str(HERE / script), *words, "--output", str(result)])
        print(f"{part}: {'written to ' + str(result) if code == 0 else f'failed ({code})'}", flush=True)
        failed += code != 0
        written += [str(result)] if code == 0 else []
    if written:
        subprocess.call([sys.executable, str(HERE / "runtime_table.py"), *written])
    return failed


if __name__ == "__main__":
    sys.exit(main())

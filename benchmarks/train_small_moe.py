"""A small Mixture-of-Experts model trained on text that every machine has, so that its routing is learned.

python benchmarks/train_small_moe.py prepare --output out/small_moe_data
python benchmarks/train_small_moe.py train --data out/small_moe_data --output benchmarks/small_moe --minutes 4 \
    --device cuda
python benchmarks/train_small_moe.py trace --data out/small_moe_data --model benchmarks/small_moe

prepare: texts of the installation to a tokenizer and token ids; the folder can be carried to another machine.
train: a Hugging Face checkpoint with its tokenizer and training.json. trace: routing traces of held-out prompts.
"""

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

from small_moe_corpus import load_corpus, write_prepared
from small_moe_domains import DOMAINS
from small_moe_report import summary, unigram_by_domain
from small_moe_text import Part, collect

from hrm.errors import HrmError


def prepare(args: argparse.Namespace) -> None:
    """Texts -> tokenizer.json, train.npz, trace_train.npz, trace_test.npz, sizes.json."""
    documents = collect(DOMAINS, args.most_bytes)
    names = tuple(domain.name for domain in DOMAINS if any(d.domain == domain.name for d in documents))
    if len(names) < 5:
        raise HrmError(f"prepare: this machine has text of {len(names)} domains ({', '.join(names)}); 5 are needed")
    corpora = write_prepared(documents, names, args.output)
    for name, row in json.loads((args.output / "sizes.json").read_text()).items():
        print(f"{name:18}", "  ".join(f"{value:>10,} {key}" for key, value in row.items()))
    total = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{args.output}: {len(corpora['train'].tokens):,} tokens for training, {total / 1e6:.1f} MB")


def train(args: argparse.Namespace) -> None:
    """Prepared folder -> checkpoint, tokenizer and training.json."""
    import torch
    from small_moe_model import ModelSizes, make_model
    from small_moe_save import save_checkpoint
    from small_moe_train import TrainSettings
    from small_moe_train import train as train_model

    if (args.minutes is None) == (args.steps is None):
        raise HrmError("train: give either --minutes or --steps")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise HrmError(f"train: --device {args.device}: no GPU is usable here; use --device cpu")
    settings = TrainSettings(
        args.minutes, args.steps, args.device, args.batch_size, learning_rate=args.learning_rate, seed=args.seed
    )
    corpus, held_out = load_corpus(args.data, "train"), load_corpus(args.data, "trace_test")
    sizes = ModelSizes()
    model = make_model(sizes, args.seed, args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights; {len(corpus.tokens):,} tokens of text", flush=True)
    result = train_model(model, corpus, held_out, settings, say=partial(print, flush=True))
    entropy = unigram_by_domain(corpus, held_out, sizes.vocab_size)
    save_checkpoint(model, args.data, args.output, settings, result, entropy)
    print(summary(result, entropy))
    print(f"{args.output}: {sum(file.stat().st_size for file in args.output.iterdir()) / 1e6:.1f} MB")


def trace(args: argparse.Namespace) -> None:
    """Checkpoint and held-out documents -> train.npz and test.npz, each with the domains of its prompts as .json."""
    from small_moe_trace import record, save_trace

    output = args.output or args.model / "traces"
    parts: tuple[tuple[str, Part, int], ...] = (
        ("train", "trace_train", args.train_prompts),
        ("test", "trace_test", args.test_prompts),
    )
    for name, part, count in parts:
        recorded = record(args.model, load_corpus(args.data, part), count, args.gen_len, args.temperature, args.seed)
        print(save_trace(recorded, output, name), flush=True)


def at_least_1(text: str) -> int:
    """A count."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def above_0(text: str) -> float:
    """A finite number."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def not_negative(text: str) -> float:
    """A finite number."""
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="texts -> tokenizer and token ids")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--most-bytes", type=at_least_1, default=18_000_000, help="of text per domain")
    command.set_defaults(do=prepare)
    _train_options(commands.add_parser("train", help="token ids -> checkpoint"))
    _trace_options(commands.add_parser("trace", help="checkpoint -> routing traces of held-out prompts"))
    args = parser.parse_args()
    try:
        args.do(args)
    except HrmError as error:
        sys.exit(str(error))


def _train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--minutes", type=above_0, help="end, and learning rate schedule, by the clock")
    command.add_argument("--steps", type=at_least_1, help="the same by steps: repeatable")
    command.add_argument("--device", default="cuda")
    command.add_argument("--batch-size", type=at_least_1, default=128, help="windows of 256 tokens per step")
    command.add_argument("--learning-rate", type=above_0, default=2e-3)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(do=train)


def _trace_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    command.add_argument("--model", type=Path, required=True, help="what train wrote")
    command.add_argument("--output", type=Path, help="default: MODEL/traces")
    command.add_argument("--train-prompts", type=at_least_1, default=1000)
    command.add_argument("--test-prompts", type=at_least_1, default=200)
    command.add_argument("--gen-len", type=at_least_1, default=64)
    command.add_argument("--temperature", type=not_negative, default=0.8, help="0: greedy")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(do=trace)


if __name__ == "__main__":
    main()

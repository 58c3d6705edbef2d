"""What a training run is judged by: loss against the unigram entropy, by domain, and the balance of the experts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from small_moe_corpus import Corpus


def unigram_entropy(train_tokens: NDArray[np.uint16], held_out: NDArray[np.uint16], vocab_size: int) -> float:
    """Nats per held-out token of a model that knows only how often each token is in training (plus one)."""
    counts = np.bincount(train_tokens, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[held_out].mean())


def unigram_by_domain(corpus: Corpus, held_out: Corpus, vocab_size: int) -> dict[str, float]:
    """The same for the held-out text of each domain, from the training text of that domain alone."""
    entropies = {}
    for index, name in enumerate(held_out.domains):
        mine, theirs = corpus.of_domain(index), held_out.of_domain(index)
        if mine and theirs:
            entropies[name] = unigram_entropy(np.concatenate(mine), np.concatenate(theirs), vocab_size)
    return entropies


def balance_of(load: NDArray[np.float32]) -> dict[str, float]:
    """Of one layer's shares [experts]: the busiest and the idlest over an equal share, entropy over its most."""
    shares = load[load > 0]
    entropy = -(shares * np.log(shares)).sum() / np.log(len(load))
    return {
        "busiest": round(float(load.max() * len(load)), 3),
        "idlest": round(float(load.min() * len(load)), 3),
        "entropy": round(float(entropy), 4),
    }


def summary(result: dict[str, Any], entropy: dict[str, float]) -> str:
    """The tables that `train` prints."""
    speed, held_out = result["speed"], result["held_out"]
    lines = [f"{speed['steps']:,} steps in {speed['seconds']:.0f} s: {speed['tokens_per_s']:,.0f} tokens/s"]
    lines.append(f"{'held-out text':20} {'loss':>7} {'unigram':>8}   nats per token")
    lines += [f"{name:20} {loss:7.3f} {entropy[name]:8.3f}" for name, loss in held_out.loss.items()]
    lines.append(f"{'mean of domains':20} {held_out.mean:7.3f}")
    lines.append(f"{'layer':>5} {'busiest':>8} {'idlest':>7} {'entropy':>8}   load of experts over an equal share")
    for layer, load in enumerate(held_out.load):
        row = balance_of(load)
        lines.append(f"{layer:5} {row['busiest']:8.2f} {row['idlest']:7.2f} {row['entropy']:8.4f}")
    return "\n".join(lines)

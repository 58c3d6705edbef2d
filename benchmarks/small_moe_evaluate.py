"""Held-out loss of the small model by domain, and the load of its experts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from small_moe_corpus import Corpus
from small_moe_model import forward, load_share, token_loss
from torch import Tensor
from transformers import MixtralForCausalLM

from hrm.errors import HrmError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss in nats per token, by domain; load [layers, experts], shares of the choices."""

    loss: dict[str, float]
    load: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Over domains, each counted once."""
        return sum(self.loss.values()) / len(self.loss)


@torch.no_grad()
def evaluate(model: MixtralForCausalLM, corpus: Corpus, device: str, seq_len: int = 256, most: int = 64) -> Evaluation:
    """Loss over up to `most` windows of every domain, evenly spaced in its text, and the load of all experts."""
    model.eval()
    losses: dict[str, float] = {}
    loads: list[Tensor] = []
    for index, name in enumerate(corpus.domains):
        batch = _even_windows(corpus.of_domain(index), seq_len, most)
        if not len(batch):
            continue
        tokens = to_device(batch, device)
        with autocast(device):
            logits, router_logits = forward(model, tokens[:, :-1])
            losses[name] = float(token_loss(logits, tokens[:, 1:]))
        loads.append(torch.stack([load_share(r, model.config.num_experts_per_tok) for r in router_logits]))
    if not losses:
        raise HrmError(f"held-out text: no domain fills a window of {seq_len + 1} tokens; prepare more text")
    return Evaluation(losses, torch.stack(loads).mean(0).cpu().numpy())


def _even_windows(documents: list[NDArray[np.uint16]], seq_len: int, most: int) -> NDArray[np.int64]:
    """[B, S + 1], B at most `most`; empty if the text is too short."""
    text = np.concatenate(documents) if documents else np.zeros(0, np.uint16)
    count = min(most, len(text) // (seq_len + 1))
    starts = np.linspace(0, max(0, len(text) - seq_len - 1), count).astype(np.int64)
    return text[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def to_device(batch: NDArray[np.int64], device: str) -> Tensor:
    """Token ids as a tensor there; a GPU fetches them while it computes."""
    tokens = torch.from_numpy(batch)
    return tokens.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tokens


def autocast(device: str) -> torch.autocast:
    """bf16 on a GPU, nothing on a CPU."""
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda"))

"""The small model: a Mixtral. On a GPU its expert layers are trained in batched matmuls."""

from dataclasses import asdict, dataclass
from types import MethodType

import torch
from small_moe_corpus import END_ID, VOCAB_SIZE
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from transformers import MixtralConfig, MixtralForCausalLM


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """About 7 million weights, of which a token meets a sixth."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 128
    intermediate_size: int = 64
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 32
    num_experts_per_tok: int = 2


def make_model(sizes: ModelSizes, seed: int, device: str) -> MixtralForCausalLM:
    """A random model in fp32, on the CPU yet; the device decides how experts are computed, the weights are the same.

    On a CPU grouped matmuls are two to three times as fast as padded ones; on a GPU padding costs little.
    """
    torch.manual_seed(seed)
    ends = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": None}
    config = MixtralConfig(**asdict(sizes), **ends, tie_word_embeddings=True, max_position_embeddings=2048)
    model = MixtralForCausalLM(config)
    if not device.startswith("cuda"):
        model.config._experts_implementation = "grouped_mm"
        return model
    for layer in model.model.layers:
        layer.mlp.experts.forward = MethodType(_batched_experts, layer.mlp.experts)
    return model


def _batched_experts(experts: nn.Module, hidden: Tensor, chosen: Tensor, scores: Tensor) -> Tensor:
    """What MixtralExperts.forward computes; hidden [T, H], chosen and scores [T, k] -> [T, H]."""
    return batched_experts(hidden, chosen, scores, experts.gate_up_proj, experts.down_proj)


def batched_experts(hidden: Tensor, chosen: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every expert's tokens, padded to those of the busiest expert (C), in two batched matmuls; no token is dropped.

    hidden [T, H], chosen [T, k], scores [T, k], gate_up [E, 2 I, H], down [E, H, I] -> [T, H]
    """
    (T, H), k, E = hidden.shape, chosen.shape[1], len(gate_up)
    place, C = _places(chosen, E)  # [T k]
    each = hidden[:, None].expand(T, k, H).reshape(T * k, H)
    x = hidden.new_zeros(E * C, H).index_copy(0, place, each).view(E, C, H)
    gate, up = torch.bmm(x, gate_up.transpose(1, 2)).chunk(2, dim=-1)  # [E, C, I]
    y = torch.bmm(silu(gate) * up, down.transpose(1, 2)).view(E * C, H)
    y = y.index_select(0, place).view(T, k, H)
    return (y * scores[..., None]).sum(1).to(hidden.dtype)


def _places(chosen: Tensor, num_experts: int) -> tuple[Tensor, int]:
    """Row of each choice in a table of num_experts times C rows, and C, the choices of the busiest expert."""
    flat = chosen.flatten()  # [T k]
    counts = count(flat, num_experts)  # [E]
    order = flat.argsort(stable=True)
    expert = flat[order]
    rank = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[expert]
    most = int(counts.max())
    return torch.empty_like(flat).index_copy(0, order, expert * most + rank), most


def balance_loss(router_logits: tuple[Tensor, ...], top_k: int) -> Tensor:
    """E sum_e f_e P_e, averaged over layers: 1 when every expert gets as many tokens as any other.

    Switch Transformers (arXiv 2101.03961), equation 4, with f over the top_k choices. Each layer is balanced on its
    own, over all tokens of the batch, so that an expert may still belong to one domain.
    """
    losses = []
    for logits in router_logits:  # [T, E]
        probabilities = logits.float().softmax(-1)
        share = load_share(logits, top_k)  # [E]
        losses.append(logits.shape[-1] * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def load_share(logits: Tensor, top_k: int) -> Tensor:
    """Share of the choices that falls on each expert; logits [T, E] -> [E], sum 1."""
    chosen = logits.topk(top_k, dim=-1).indices.flatten()  # [T k]
    return count(chosen, logits.shape[-1]) / len(chosen)


def count(chosen: Tensor, num_experts: int) -> Tensor:
    """How often each expert is named; [n] -> [E]. Unlike bincount it does not make the CPU wait for the GPU."""
    return torch.zeros(num_experts, dtype=chosen.dtype, device=chosen.device).index_add_(
        0, chosen, torch.ones_like(chosen)
    )


def forward(model: MixtralForCausalLM, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """tokens [B, S] -> logits [B, S, V] and every layer's router logits [B S, E]."""
    out = model.model(input_ids=tokens, output_router_logits=True, use_cache=False)
    return model.lm_head(out.last_hidden_state), out.router_logits


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; logits [B, S, V], targets [B, S]."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())

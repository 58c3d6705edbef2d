"""Seconds per unit of work for one model, workload and machine: the numbers that forms are built from."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hrm.predict.machine import Machine
from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import dense_operators, expert_operator, routed_tokens_per_expert
from hrm.roofline.operator import Quantity, fuse
from hrm.roofline.sizes import Sizes
from hrm.spec.model import ModelSpec
from hrm.spec.workload import Workload

MAX_CHUNK = 32_768
CHUNK_GRANULARITY = 256  # prefill chunks are whole multiples of this many tokens


@dataclass(frozen=True)
class Rates:
    """Times of one pass over all layers, each operator at its own roof."""

    model: ModelSpec
    workload: Workload
    machine: Machine
    chunk_tokens: int | None = None

    @cached_property
    def sizes(self) -> Sizes:
        """What the same model weighs."""
        return Sizes(self.model, self.machine.precision)

    def dense_seconds(self, tokens: Quantity, logit_tokens: Quantity) -> Quantity:
        """GPU time of all weight operators but the experts for one batch of `tokens`, each at its own roof."""
        total: Quantity = 0.0
        for op in dense_operators(self.model, self.machine.precision, tokens, logit_tokens):
            total = total + self.machine.seconds("gpu", op, tokens)
        return total

    @cached_property
    def decode_attention_seconds(self) -> dict[str, float]:
        """By level: attention time of one sequence's decode step, scores and PV in one fused read of the KV.

        At the mean context of the generation.
        """
        return {level: self._decode_attention_seconds(level) for level in ("gpu", "cpu")}

    def _decode_attention_seconds(self, level: str) -> float:
        parts = decode_attention(self.model, self.machine.precision, 1.0, self.workload.mean_context_len)
        copies = self.kv_replication if level == "gpu" else 1.0
        return float(self.machine.seconds(level, fuse(parts, copies), 1.0))

    @cached_property
    def decode_attention_bytes(self) -> float:
        """Memory traffic of one sequence's decode attention at the mean context."""
        return self.sizes.decode_attention_bytes(self.workload.mean_context_len)

    @cached_property
    def prefill_attention_seconds(self) -> float:
        """GPU attention time of prefilling one prompt."""
        w = self.workload
        parts = prefill_attention(self.model, self.machine.precision, 1.0, w.prompt_len, w.prompt_len_sq)
        return float(self.machine.seconds("gpu", fuse(parts), w.prompt_len))

    def expert_compute_seconds(self, level: str, tokens: Quantity, rows_tokens: Quantity) -> Quantity:
        """Arithmetic time of `tokens` through their experts, at the efficiency of a batch of `rows_tokens`."""
        op = expert_operator(self.model, self.machine.precision, tokens)
        rows = routed_tokens_per_expert(self.model, rows_tokens)
        return self.machine.compute_seconds(level, "expert_ffn", op.flops, rows)

    def expert_weight_seconds(self, level: str, tokens: Quantity) -> Quantity:
        """Time to read, once, the experts that `tokens` tokens are expected to touch."""
        op = expert_operator(self.model, self.machine.precision, tokens)
        return self.machine.memory_seconds(level, "expert_ffn", op.weight_bytes)

    def expert_activation_seconds(self, level: str, tokens: Quantity) -> Quantity:
        """Time to move the activations of `tokens` tokens in and out of their experts."""
        op = expert_operator(self.model, self.machine.precision, tokens)
        return self.machine.memory_seconds(level, "expert_ffn", op.activation_bytes)

    def expert_seconds(self, tokens: Quantity) -> Quantity:
        """GPU time of one expert sweep over a batch of `tokens`."""
        moved = self.expert_weight_seconds("gpu", tokens) + self.expert_activation_seconds("gpu", tokens)
        return np.maximum(self.expert_compute_seconds("gpu", tokens, tokens), moved)

    @cached_property
    def prefill_chunk_tokens(self) -> int:
        """Tokens per prefill chunk: the stated ones, else as many as make chunks of this model compute-bound here."""
        return self.chunk_tokens or self._compute_bound_chunk()

    def _compute_bound_chunk(self) -> int:
        """Where max(c t, W + a t) turns compute-bound, t = W / (c - a), for the experts and for the other weights.

        W: reading weights, c: arithmetic and a: activation traffic per token. Where activations alone outweigh the
        arithmetic there is no such point; the chunk is then the one whose weight reads are 5 % of the rest.
        """
        expert = self._balanced_tokens(
            float(self.expert_weight_seconds("gpu", 1e9)),
            float(self.expert_compute_seconds("gpu", 1.0, 1e9)),
            float(self.expert_activation_seconds("gpu", 1.0)),
        )
        ops = [op for op in dense_operators(self.model, self.machine.precision, 1.0, 0.0) if op.name != "lm_head"]
        dense = self._balanced_tokens(
            sum(float(self.machine.memory_seconds("gpu", "linear", op.weight_bytes)) for op in ops),
            sum(float(self.machine.compute_seconds("gpu", "linear", op.flops, 1e9)) for op in ops),
            sum(float(self.machine.memory_seconds("gpu", "linear", op.activation_bytes)) for op in ops),
        )
        granules = math.ceil(max(expert, dense) / CHUNK_GRANULARITY)
        return min(max(1, granules) * CHUNK_GRANULARITY, MAX_CHUNK)

    @staticmethod
    def _balanced_tokens(weights: float, compute: float, activations: float) -> float:
        if compute > activations:
            return min(weights / (compute - activations), 20 * weights / max(activations, 1e-300))
        return 20 * weights / activations

    def for_chunk(self, tokens: int | None) -> "Rates":
        """The same rates with prefill in chunks of `tokens` tokens; None keeps them."""
        if tokens is None or tokens == self.prefill_chunk_tokens:
            return self
        return self._by_chunk.setdefault(tokens, replace(self, chunk_tokens=tokens))

    @cached_property
    def _by_chunk(self) -> "dict[int, Rates]":
        return {}

    @cached_property
    def kv_replication(self) -> float:
        """Times the KV cache is held, and read, over all GPUs: heads are sharded, an MLA's latent has none to shard."""
        devices = self.machine.tensor_parallel_size
        copies = [
            devices if layer.attention.is_mla else max(1.0, devices / layer.attention.num_key_value_heads)
            for layer, _ in self.model.layer_groups
        ]
        return max(copies)

    @cached_property
    def prefill_seconds_per_token(self) -> tuple[float, float]:
        """GPU seconds per prompt token in full chunks: (weight operators but experts, experts)."""
        chunk = float(self.prefill_chunk_tokens)
        dense = float(self.dense_seconds(chunk, chunk / self.workload.prompt_len)) / chunk
        return dense, float(self.expert_seconds(chunk)) / chunk

    @cached_property
    def expert_activation_bytes(self) -> float:
        """Bytes of activations that one token moves through its experts."""
        return float(expert_operator(self.model, self.machine.precision, 1.0).activation_bytes)

    @cached_property
    def dense_read_seconds(self) -> float:
        """GPU time to read every weight but the experts once."""
        return float(self.machine.memory_seconds("gpu", "linear", self.sizes.dense_bytes))

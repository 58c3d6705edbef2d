"""Seconds per unit of work for one model, workload and machine: the numbers that forms are built from."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hrm.predict.machine import Machine
from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import dense_operators, expert_operator, routed_tokens_per_expert
from hrm.roofline.operator import Quantity
from hrm.roofline.sizes import Sizes
from hrm.spec.model import ModelSpec
from hrm.spec.workload import Workload

CHUNK_GRANULARITY = 256  # prefill chunks are whole multiples of this many tokens


@dataclass(frozen=True)
class Rates:
    """Times of one pass over all layers, each operator at its own roof."""

    model: ModelSpec
    workload: Workload
    machine: Machine

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
        flops, moved = sum(float(op.flops) for op in parts), sum(float(op.bytes) for op in parts)
        compute = self.machine.compute_seconds(level, "attention", flops, 1.0)
        return float(np.maximum(compute, self.machine.memory_seconds(level, "attention", moved)))

    @cached_property
    def decode_attention_bytes(self) -> float:
        """Memory traffic of one sequence's decode attention at the mean context."""
        return self.sizes.decode_attention_bytes(self.workload.mean_context_len)

    @cached_property
    def prefill_attention_seconds(self) -> float:
        """GPU attention time of prefilling one prompt."""
        w = self.workload
        parts = prefill_attention(self.model, self.machine.precision, 1.0, w.prompt_len, w.prompt_len_sq)
        flops, moved = sum(float(op.flops) for op in parts), sum(float(op.bytes) for op in parts)
        compute = self.machine.compute_seconds("gpu", "attention", flops, w.prompt_len)
        return float(np.maximum(compute, self.machine.memory_seconds("gpu", "attention", moved)))

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
        """Tokens per prefill chunk: the ridge point of the experts on this GPU, where reading weights costs no more
        than the arithmetic; larger chunks would only take more memory.
        """
        read = float(self.expert_weight_seconds("gpu", 1e9))
        per_token = float(self.expert_compute_seconds("gpu", 1.0, 1e9))
        return max(1, math.ceil(read / per_token / CHUNK_GRANULARITY)) * CHUNK_GRANULARITY

    @cached_property
    def prefill_seconds_per_token(self) -> tuple[float, float]:
        """GPU seconds per prompt token in full chunks: (weight operators but experts, experts)."""
        chunk = float(self.prefill_chunk_tokens)
        dense = float(self.dense_seconds(chunk, chunk / self.workload.prompt_len)) / chunk
        return dense, float(self.expert_seconds(chunk)) / chunk

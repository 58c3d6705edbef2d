"""Bytes of everything that is stored or moved, for one model in one precision."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hrm.roofline.attention import attended_tokens, decode_attention, head_widths
from hrm.roofline.linear import expected_distinct_experts, expert_layers
from hrm.roofline.operator import Quantity
from hrm.spec.model import ModelSpec
from hrm.spec.precision import Precision

EXPERT_PIECE_BYTES = 64 << 20  # gate and up of all tokens for one piece of the experts' rows
EXPERT_PIECE_ROWS = 512  # narrower pieces would not fill the GPU
FP32 = 4


@dataclass(frozen=True)
class Sizes:
    """Totals over all layers unless named otherwise, in bytes of the storage precision."""

    model: ModelSpec
    precision: Precision

    @cached_property
    def num_expert_layers(self) -> int:
        """Layers whose routed experts (dense model: FFNs) are paged."""
        return sum(count for _, count in expert_layers(self.model))

    @cached_property
    def expert_page_bytes(self) -> float:
        """Bytes of the largest single expert."""
        sizes = [
            f.expert_parameters(self.model.hidden_size) if f.is_moe else f.dense_parameters(self.model.hidden_size)
            for f, _ in expert_layers(self.model)
        ]
        return max(sizes) * self.precision.expert_weight_bytes

    @cached_property
    def num_experts_total(self) -> int:
        """Expert pages of all layers."""
        return sum((f.num_experts if f.is_moe else 1) * count for f, count in expert_layers(self.model))

    @cached_property
    def expert_bytes(self) -> float:
        """Bytes of all paged expert weights that a pass goes through."""
        sizes = [
            f.num_experts * f.expert_parameters(self.model.hidden_size)
            if f.is_moe
            else f.dense_parameters(self.model.hidden_size)
            for f, count in expert_layers(self.model)
            for _ in range(count)
        ]
        return sum(sizes) * self.precision.expert_weight_bytes

    @cached_property
    def expert_layer_bytes(self) -> float:
        """Bytes of the paged expert weights of one layer that has any, on average."""
        return self.expert_bytes / self.num_expert_layers

    @cached_property
    def dense_bytes(self) -> float:
        """Bytes of every other layer weight and the LM head: read in each pass by every batch."""
        skipped = ("embedding", "experts") if self.model.num_moe_layers else ("embedding", "dense_ffn")
        kept = sum(n for kind, n in self.model.parameters.items() if kind not in skipped)
        tied = self.model.parameters["embedding"] if self.model.tie_word_embeddings else 0
        encoder = sum(n for k, n in self._encoder_parameters.items() if k != "experts")
        return (kept + tied - encoder) * self.precision.weight_bytes

    @cached_property
    def _encoder_parameters(self) -> dict[str, int]:
        """Elements by class of an encoder-decoder model's encoder, which no decode pass goes through."""
        total: Counter[str] = Counter()
        for layer in self.model.encoder_layers:
            total.update(layer.parameters(self.model.hidden_size))
        return dict(total)

    @cached_property
    def encoder_bytes(self) -> float:
        """Bytes of the encoder, kept in CPU memory; 0 for decoder-only models."""
        experts = self._encoder_parameters.get("experts", 0)
        others = sum(self._encoder_parameters.values()) - experts
        return experts * self.precision.expert_weight_bytes + others * self.precision.weight_bytes

    @cached_property
    def largest_dense_unit_bytes(self) -> float:
        """Bytes of the largest piece that non-expert weights are streamed in: a layer's, or the LM head."""
        hidden, has_moe = self.model.hidden_size, bool(self.model.num_moe_layers)
        paged = ("experts",) if has_moe else ("dense_ffn",)
        layers = [
            sum(n for kind, n in layer.parameters(hidden).items() if kind not in paged)
            for layer, _ in self.model.layer_groups
        ]
        head = self.model.vocab_size * self.model.embedding_size
        return max(*layers, head) * self.precision.weight_bytes

    @cached_property
    def embedding_bytes(self) -> float:
        """Bytes of the embedding table, which stays in CPU memory (its rows are gathered); 0 when tied."""
        own = 0 if self.model.tie_word_embeddings else self.model.parameters["embedding"]
        return own * self.precision.weight_bytes

    @cached_property
    def hidden_bytes(self) -> float:
        """Bytes of one token's hidden state."""
        return self.model.hidden_size * self.precision.activation_bytes

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache per token, all layers."""
        return self.model.kv_bytes_per_token(self.precision.kv_bytes)

    def kv_bytes_per_sequence(self, tokens: float) -> float:
        """Bytes of KV cache a sequence of `tokens` holds; sliding-window layers keep their window only."""
        elements = sum(
            attended_tokens(layer.attention, tokens) * layer.attention.kv_width * count
            for layer, count in self.model.layer_groups
        )
        return elements * self.precision.kv_bytes

    @cached_property
    def kv_layer_bytes_max(self) -> float:
        """Bytes of KV per token in the widest single layer."""
        widest = max(layer.attention.kv_width for layer in self.model.layers)
        return widest * self.precision.kv_bytes

    @cached_property
    def attention_input_bytes(self) -> float:
        """Q and new K, V of one token over all layers: what goes to the CPU when it attends."""
        precision = self.precision
        queries = sum(
            layer.attention.num_attention_heads * head_widths(layer.attention, absorbed=True)[0] * count
            for layer, count in self.model.layer_groups
        )
        return queries * precision.activation_bytes + self.kv_bytes_per_token

    @cached_property
    def attention_output_bytes(self) -> float:
        """Attention result of one token over all layers: what comes back."""
        values = sum(
            layer.attention.num_attention_heads * head_widths(layer.attention, absorbed=True)[1] * count
            for layer, count in self.model.layer_groups
        )
        return values * self.precision.activation_bytes

    def decode_attention_bytes(self, context_len: float) -> float:
        """Memory traffic of one sequence's decode attention."""
        parts = decode_attention(self.model, self.precision, 1.0, context_len)
        return sum(float(op.bytes) for op in parts)

    def touched_share(self, tokens: Quantity) -> Quantity:
        """Expected share of all experts that `tokens` tokens touch."""
        total: Quantity = 0.0
        for ffn, count in expert_layers(self.model):
            experts, top_k = (ffn.num_experts, ffn.top_k) if ffn.is_moe else (1, 1)
            total = total + count * expected_distinct_experts(experts, top_k, tokens)
        return total / self.num_experts_total

    @cached_property
    def projection_workspace_bytes(self) -> float:
        """Peak activation bytes per token between norm and output projection, in the widest layer."""
        widths = []
        for layer in self.model.layers:
            query, value = head_widths(layer.attention, absorbed=True)
            heads = layer.attention.num_attention_heads
            widths.append(heads * (query + value) + layer.attention.kv_width + 2 * self.model.hidden_size)
        return max(widths) * self.precision.activation_bytes

    @cached_property
    def expert_workspace_bytes(self) -> float:
        """Peak activation bytes per token in a grouped expert FFN, but for gate and up (`expert_piece_bytes`).

        Per chosen expert the gathered input, and in fp32 the sum over pieces of the intermediate dimension and that sum
        in order of tokens; per token the result in fp32, and what a shared expert needs.
        """
        hidden, act = self.model.hidden_size, self.precision.activation_bytes
        widths = []
        for layer in self.model.layers:
            ffn, ups = layer.ffn, 2 if layer.ffn.gated else 1
            copies = ffn.top_k if ffn.is_moe else 1
            shared = (ups + 1) * ffn.shared_intermediate_size * act
            widths.append(copies * hidden * (act + 2 * FP32) + hidden * FP32 + shared)
        return max(widths)

    def expert_piece_bytes(self, tokens: Quantity) -> Quantity:
        """Peak bytes of gate, up and their product while `tokens` tokens go through a piece of the experts: the pieces
        are cut so that gate and up stay below EXPERT_PIECE_BYTES, but no narrower than EXPERT_PIECE_ROWS.
        """
        copies = max(layer.ffn.top_k if layer.ffn.is_moe else 1 for layer in self.model.layers)
        rows = max(layer.ffn.intermediate_size for layer in self.model.layers)
        row_bytes = tokens * copies * 2 * self.precision.activation_bytes
        least = row_bytes * min(EXPERT_PIECE_ROWS, rows)
        return 2 * np.minimum(np.maximum(EXPERT_PIECE_BYTES, least), row_bytes * rows)

    @cached_property
    def logit_bytes(self) -> float:
        """Bytes of one token's logits, kept in fp32 for sampling."""
        return self.model.vocab_size * 4.0

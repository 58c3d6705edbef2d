"""What the runtime has to know of a model: sizes, and the few switches in which the families differ."""

from dataclasses import dataclass
from typing import Literal

import torch

QkNorm = Literal["none", "head", "full"]


@dataclass(frozen=True)
class ModelConfig:
    """One model. Sizes in elements; a size is 0 where the model has no such part."""

    name: str
    family: str  # Hugging Face model_type
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    dense_intermediate_size: int
    moe_layers: tuple[bool, ...]  # per layer: whether it routes to experts
    rms_norm_eps: float
    rope_theta: float
    norm_topk_prob: bool  # the weights of the chosen experts are scaled to sum to 1
    qkv_bias: bool
    o_bias: bool
    qk_norm: QkNorm  # norm of queries and keys: none, of every head, or of the whole projection
    clip_qkv: float | None
    tie_word_embeddings: bool
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    max_position_embeddings: int

    @property
    def q_width(self) -> int:
        """N D: all query heads of one token."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K D: all key heads of one token, and as many for the values."""
        return self.num_key_value_heads * self.head_dim

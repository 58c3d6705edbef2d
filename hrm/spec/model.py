"""A transformer as shapes: what its layers are made of, how many parameters, how large its KV cache."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from hrm.spec.attention import AttentionSpec
from hrm.spec.ffn import FfnSpec
from hrm.spec.linear import Linear

__all__ = ["PARAMETER_CLASSES", "AttentionSpec", "FfnSpec", "LayerSpec", "Linear", "ModelSpec"]

PARAMETER_CLASSES = (
    "embedding",
    "lm_head",
    "attention",
    "norm",
    "router",
    "experts",
    "shared_experts",
    "dense_ffn",
)


@dataclass(frozen=True)
class LayerSpec:
    """One transformer layer. `layer_norm_parameters` counts the norms outside the attention."""

    attention: AttentionSpec
    ffn: FfnSpec
    layer_norm_parameters: int
    cross_attention: AttentionSpec | None = None  # decoder layer of an encoder-decoder model only

    def parameters(self, hidden_size: int) -> dict[str, int]:
        """Elements of each tensor class of PARAMETER_CLASSES that a layer holds."""
        attentions = [a for a in (self.attention, self.cross_attention) if a is not None]
        return {
            "attention": sum(a.parameters(hidden_size) for a in attentions),
            "norm": self.layer_norm_parameters + sum(a.norm_parameters for a in attentions),
            "router": self.ffn.router_parameters(hidden_size),
            "experts": self.ffn.num_experts * self.ffn.expert_parameters(hidden_size),
            "shared_experts": self.ffn.shared_parameters(hidden_size),
            "dense_ffn": self.ffn.dense_parameters(hidden_size),
        }

    def idle_parameters(self, hidden_size: int) -> int:
        """Elements of the routed experts that one token does not select."""
        return (self.ffn.num_experts - self.ffn.top_k) * self.ffn.expert_parameters(hidden_size)

    def active_parameters(self, hidden_size: int) -> int:
        """Elements that take part in one token: all but the experts that are not selected."""
        return sum(self.parameters(hidden_size).values()) - self.idle_parameters(hidden_size)


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model, or the decoder of an encoder-decoder model with its encoder kept apart.

    `layers` are the layers a generated token passes, in order; `encoder_layers` (Switch only) count as
    parameters and in nothing else. Left out: multi-token-prediction layers (DeepSeek-V3, GLM-4.5), which
    `transformers` does not instantiate either, and the vision tower of a multimodal checkpoint (Llama 4).
    """

    name: str
    family: str  # Hugging Face model_type
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    tie_word_embeddings: bool
    dtype: str  # "bf16", "fp16" or "fp32": of the arithmetic the checkpoint was made for
    expert_dtype: str | None  # native format of the stored routed experts where it differs from dtype
    max_position_embeddings: int | None
    embedding_size: int  # width of the token embedding and of the lm_head; hidden_size unless OPT projects it
    position_parameters: int = 0  # learned position embeddings and OPT's embedding projections
    final_norm_parameters: int = 0
    lm_head_bias: bool = False
    encoder_layers: tuple[LayerSpec, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers that a generated token passes."""
        return len(self.layers)

    @cached_property
    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """Distinct layers with how often each occurs, so that sums over layers take a few terms."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def num_moe_layers(self) -> int:
        """Those of `layers` that route tokens to experts."""
        return sum(layer.ffn.is_moe for layer in self.layers)

    @property
    def parameters(self) -> dict[str, int]:
        """Elements per tensor class, keys PARAMETER_CLASSES; a tied lm_head is 0.

        "embedding" holds learned positions too. Counts everything a checkpoint stores for the parts named
        above, e_score_correction_bias included; rotary frequencies are computed, not stored.
        """
        return dict(self._parameters)

    @cached_property
    def _parameters(self) -> dict[str, int]:
        total = Counter(dict.fromkeys(PARAMETER_CLASSES, 0))
        for layer in self.layers + self.encoder_layers:
            total.update(layer.parameters(self.hidden_size))
        head = 0 if self.tie_word_embeddings else self.vocab_size * self.embedding_size
        total["lm_head"] = head + (self.vocab_size if self.lm_head_bias else 0)
        total["embedding"] = self.vocab_size * self.embedding_size + self.position_parameters
        total["norm"] += self.final_norm_parameters
        return dict(total)

    @property
    def num_parameters(self) -> int:
        """All elements, each expert counted."""
        return sum(self._parameters.values())

    @cached_property
    def num_active_parameters(self) -> int:
        """Elements that take part in one token: all but the routed experts outside each layer's top_k.

        Counts embeddings, lm_head, shared experts and an encoder. (Of an embedding only one row is read per
        token; publishers differ on counting it, so a published number may be lower.)
        """
        layers = self.layers + self.encoder_layers
        return self.num_parameters - sum(layer.idle_parameters(self.hidden_size) for layer in layers)

    def kv_bytes_per_token(self, dtype_bytes: float) -> float:
        """Bytes that one token's K and V take in the cache of all `layers`, at `dtype_bytes` per element.

        A windowed layer holds that many only for the last `window` tokens. Leaves out the K and V of a
        cross-attention, which belong to the encoder's tokens and do not grow.
        """
        return dtype_bytes * sum(layer.attention.kv_width for layer in self.layers)

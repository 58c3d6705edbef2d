"""The matrix and attention shapes of one model that a calibration runs."""

from dataclasses import dataclass, replace

from hrm.errors import ModelConfigError
from hrm.roofline.linear import expert_layers
from hrm.spec.model import ModelSpec

QUICK_WIDTH = 512


@dataclass(frozen=True)
class Shapes:
    """Widths in elements. `linear_out` is that of the query, key and value projections side by side."""

    model: str
    hidden_size: int
    linear_out: int
    intermediate_size: int
    num_experts: int
    top_k: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def expert_elements(self) -> int:
        """Elements of the gate, up and down matrices of one expert."""
        return 3 * self.hidden_size * self.intermediate_size


def shapes_of(model: ModelSpec) -> Shapes:
    """Shapes of the first layer whose FFN is paged (of a dense model, its FFN as one expert).

    Raises:
        ModelConfigError: an attention other than grouped-query, or an FFN without a gate.
    """
    ffn = expert_layers(model)[0][0]
    attention = next(layer.attention for layer in model.layers if layer.ffn == ffn)
    if attention.is_mla:
        raise ModelConfigError(f"{model.name}: has latent attention, which the runtime lacks; choose another --model")
    if not ffn.gated:
        raise ModelConfigError(f"{model.name}: has an FFN without a gate, which the runtime lacks; choose another")
    heads, kv_heads, width = attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim
    return Shapes(
        model=model.name,
        hidden_size=model.hidden_size,
        linear_out=(heads + 2 * kv_heads) * width,
        intermediate_size=ffn.intermediate_size,
        num_experts=max(1, ffn.num_experts),
        top_k=max(1, ffn.top_k),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
    )


def reduced(shapes: Shapes) -> Shapes:
    """The same with no matrix wider than QUICK_WIDTH, and at most four experts; a small model stays as it is."""
    return replace(
        shapes,
        hidden_size=min(shapes.hidden_size, QUICK_WIDTH),
        linear_out=min(shapes.linear_out, QUICK_WIDTH),
        intermediate_size=min(shapes.intermediate_size, QUICK_WIDTH),
        num_experts=min(4, shapes.num_experts),
    )

"""What a model family is: a handful of functions over tensors, and the names its checkpoints use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from runtime.models.config import ModelConfig

Weights = Mapping[str, Tensor]  # local name -> tensor
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Routed:
    """A layer before its routed experts. Its output is `hidden` plus, for each chosen expert e with weight w,

    w * down_e(silu(gate_e x) * up_e x), x = `normed`.
    """

    hidden: Tensor  # [T, H] residual stream; shared experts or the dense FFN already added
    normed: Tensor | None = None  # [T, H] input of the experts; None on a dense layer, as the next two
    experts: Tensor | None = None  # [T, k] int64
    weights: Tensor | None = None  # [T, k]; fp32 or the dtype of `normed`, as the family has it


class PreAttention(Protocol):
    def __call__(self, config: ModelConfig, weights: Weights, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden [T, H]; cos, sin [T, D] -> [T, N + 2 K, D], contiguous: query, then key, then value heads."""


class PostAttention(Protocol):
    def __call__(self, config: ModelConfig, weights: Weights, hidden: Tensor, attention: Tensor) -> Routed:
        """hidden [T, H]: what pre_attention was given; attention [T, N D]."""


class ReadConfig(Protocol):
    def __call__(self, raw: Mapping[str, object], where: str) -> ModelConfig:
        """From a parsed config.json; `where` names the file. Raises ModelConfigError."""


class LayerShapes(Protocol):
    def __call__(self, config: ModelConfig, layer: int) -> Shapes:
        """Local names and shapes of all weights of a layer but the routed experts."""


class LayerNames(Protocol):
    def __call__(self, config: ModelConfig, layer: int) -> dict[str, str]:
        """Local name -> checkpoint tensor name, for the keys of layer_shapes."""


class ExpertNames(Protocol):
    def __call__(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Checkpoint names of gate [I, H], up [I, H] and down [H, I]."""


@dataclass(frozen=True)
class Family:
    """The functions of one family; none of them knows where weights lie or what is offloaded."""

    model_type: str
    read_config: ReadConfig
    layer_shapes: LayerShapes
    layer_names: LayerNames
    expert_names: ExpertNames
    pre_attention: PreAttention
    post_attention: PostAttention

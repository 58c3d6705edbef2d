"""What the engine asks of a model's weights, wherever they come from."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from hrm.spec.model import ModelSpec
from runtime.models.config import ModelConfig
from runtime.models.family import Family


class WeightSource(Protocol):
    """A model and its weights: a checkpoint directory, or random numbers of the same shapes."""

    raw: Mapping[str, object]  # config.json

    @property
    def config(self) -> ModelConfig: ...

    @property
    def family(self) -> Family: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of every tensor that `tensor` returns."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight of that checkpoint name, on the CPU; not to be written to. Raises CheckpointError."""

    def read_into(self, name: str, out: Tensor) -> None:
        """Writes the weight into `out` [its shape], any dtype. Raises CheckpointError."""

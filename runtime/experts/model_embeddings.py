"""Token embeddings of the model whose routing is predicted, as a start for a predictor's own."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hrm.errors import HrmError
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.models.common import global_names


def read_embeddings(model: str, size: int) -> Tensor:
    """`model_embeddings` of the checkpoint in a directory.

    Raises:
        HrmError: no directory, or no checkpoint in it.
    """
    if not Path(model).is_dir():
        raise HrmError(f"--model-embeddings: {model[:200]} is no checkpoint directory; give one as --model")
    return model_embeddings(Checkpoint.open(Path(model)), size)


def model_embeddings(checkpoint: Checkpoint, size: int) -> Tensor:
    """The leading `size` principal components of the embedding table [V, size], of unit variance in all; 0 beyond its
    width.

    What the model tells apart by its embeddings is where routing begins, and a training trace shows most ids a few
    times only.

    Raises:
        CheckpointError: the table cannot be read.
    """
    config = checkpoint.config
    name = global_names(config)["embedding"]
    table = checkpoint.tensor(name, (config.vocab_size, config.hidden_size)).float()
    table = table - table.mean(dim=0)
    _, directions = torch.linalg.eigh(table.T @ table)  # ascending
    width = min(size, config.hidden_size)
    found = table @ directions.flip(1)[:, :width]
    found = found / found.square().mean().sqrt().clamp(min=1e-12)
    return functional.pad(found, (0, size - width))

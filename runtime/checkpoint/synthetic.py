"""A model with random weights: the shapes of a real one, no files."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from hrm.errors import ModelConfigError
from hrm.spec.model import ModelSpec
from hrm.spec.model_config import model_from_hf, shipped_models
from hrm.spec.suggest import unknown_name
from runtime.checkpoint.json_file import read_json
from runtime.models.config import ModelConfig
from runtime.models.family import Family
from runtime.models.registry import family_of

_BLOCK = 15_000_017  # prime, so that no row length divides it and rows of a tensor do not repeat


class SyntheticCheckpoint:
    """Same interface as Checkpoint. A tensor depends on the seed and its name alone.

    Tensors are cut out of one block of normal numbers at places that the name decides: drawing every element
    of a large model would take minutes.
    """

    def __init__(
        self, raw: Mapping[str, object], config: ModelConfig, family: Family, spec: ModelSpec, seed: int
    ) -> None:
        self.raw = raw
        self.config = config
        self.family = family
        self.spec = spec
        self.seed = seed

    @property
    def dtype(self) -> torch.dtype:
        """Of every tensor that `tensor` returns."""
        return self.config.dtype

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Random weights, scaled by 1 / sqrt(fan in); ones for a norm."""
        out = torch.empty(shape, dtype=self.dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Writes what `tensor` gives into `out`, which must be contiguous."""
        if out.ndim == 1 and name.endswith("norm.weight"):
            out.fill_(1.0)
            return
        scale = 1.0 if name.endswith("embed_tokens.weight") else out.shape[-1] ** -0.5
        block = _normal_block(self.seed, out.dtype)
        start = int.from_bytes(sha256(name.encode()).digest()[:8], "little") % _BLOCK
        flat = out.view(-1)
        for piece, source in _pieces(flat, block, start):
            torch.mul(source, scale, out=piece)


def _pieces(flat: Tensor, block: Tensor, start: int) -> list[tuple[Tensor, Tensor]]:
    """Stretches of `flat` with the stretches of `block` that fill them, going round the block from `start`."""
    pieces = []
    done = 0
    while done < flat.numel():
        count = min(flat.numel() - done, block.numel() - start)
        pieces.append((flat[done : done + count], block[start : start + count]))
        done, start = done + count, 0
    return pieces


@lru_cache(maxsize=2)
def _normal_block(seed: int, dtype: torch.dtype) -> Tensor:
    """[_BLOCK] normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_BLOCK, generator=generator).to(dtype)


def synthetic_checkpoint(
    model: str | Mapping[str, object],
    num_layers: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> SyntheticCheckpoint:
    """Random weights for a shipped model, a config.json (or a directory with one), or a parsed config.

    num_layers: only the first so many layers. dtype: instead of the config's.

    Raises:
        UnknownNameError: neither a file nor a shipped name.
        CheckpointError, ModelConfigError: a config that cannot be read or run.
    """
    name, where, raw = _read(model) if isinstance(model, str) else (str(model.get("model_type")), "config", model)
    family = family_of(raw, where)
    raw = _first_layers(raw, num_layers, where) if num_layers is not None else raw
    if dtype is not None:
        raw = {**raw, "dtype": str(dtype).removeprefix("torch.")}
    config = replace(family.read_config(raw, where), name=name)
    return SyntheticCheckpoint(raw, config, family, model_from_hf(raw, name, where), seed)


def _read(model: str) -> tuple[str, str, Mapping[str, object]]:
    """Name, place for messages and content of a config; a path first, then a shipped name in any case."""
    path = Path(model)
    if path.exists():
        file = path / "config.json" if path.is_dir() else path
        name = file.resolve().parent.name if file.name == "config.json" else file.stem
        return name, str(file), read_json(file)
    name = model.lower()
    if name not in shipped_models():
        raise unknown_name("model", name, shipped_models())
    text = (resources.files("hrm.data.models") / f"{name}.json").read_text(encoding="utf-8")
    return name, f"{name}.json", json.loads(text)


def _first_layers(raw: Mapping[str, object], num_layers: int, where: str) -> dict[str, object]:
    """The config with fewer layers."""
    there = raw.get("num_hidden_layers")
    if not isinstance(there, int) or not 1 <= num_layers <= there:
        raise ModelConfigError(f"{where}: num_hidden_layers is {there}; ask for 1 to {there} layers, not {num_layers}")
    cut = {**raw, "num_hidden_layers": num_layers}
    dense, types = raw.get("mlp_only_layers"), raw.get("layer_types")
    if isinstance(dense, list):
        cut["mlp_only_layers"] = [layer for layer in dense if layer < num_layers]
    if isinstance(types, list):
        cut["layer_types"] = types[:num_layers]
    return cut

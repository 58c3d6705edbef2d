"""A model as Hugging Face writes it: config.json and safetensors files in one directory."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hrm.errors import CheckpointError
from hrm.spec.model import ModelSpec
from hrm.spec.model_config import model_from_hf
from runtime.checkpoint.expected import expected_tensors
from runtime.checkpoint.fused import Located, locate
from runtime.checkpoint.header import StoredTensor
from runtime.checkpoint.json_file import read_json
from runtime.checkpoint.shards import stored_tensors
from runtime.checkpoint.stored_dtype import dtype_of_most, require_dtype
from runtime.models.config import ModelConfig
from runtime.models.config_reader import eos_token_ids
from runtime.models.family import Family
from runtime.models.registry import family_of


class Checkpoint:
    """Reads weights when they are asked for; several threads may read at once.

    The dtype is that of the stored weights (of most elements, where a few tensors differ), whatever config.json says,
    unless another is asked for; tensors stored otherwise are converted to it, as transformers does.
    """

    def __init__(
        self,
        directory: Path,
        raw: Mapping[str, object],
        config: ModelConfig,
        family: Family,
        spec: ModelSpec,
        stored: Mapping[str, StoredTensor],
    ) -> None:
        self.directory = directory
        self.raw = raw
        self.config = config
        self.family = family
        self.spec = spec
        self._stored = stored
        self._files: dict[Path, Any] = {}
        self._lock = Lock()

    @classmethod
    def open(cls, directory: Path, dtype: torch.dtype | None = None) -> "Checkpoint":
        """Opens a directory and checks that all weights are there, with the right shapes; reads none of them.

        Raises:
            CheckpointError: a file or tensor that is missing, damaged, of another shape or of an unsupported dtype.
            ModelConfigError: a config.json that is malformed, or asks for what the runtime cannot compute.
        """
        where = str(_config_file(directory))
        raw = read_json(Path(where))
        family = family_of(raw, where)
        stored = stored_tensors(directory)
        described = {**raw, "dtype": str(dtype or dtype_of_most(stored, directory)).removeprefix("torch.")}
        name = directory.resolve().name
        config = replace(family.read_config(described, where), name=name)
        config = replace(config, eos_token_ids=_eos_token_ids(directory, config))
        checkpoint = cls(directory, raw, config, family, model_from_hf(described, name, where), stored)
        for tensor, shape in expected_tensors(family, config):
            checkpoint._locate(tensor, shape)
        return checkpoint

    @property
    def dtype(self) -> torch.dtype:
        """Of every tensor that `tensor` returns."""
        return self.config.dtype

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight of that name, on the CPU; not to be written to, as it may be the mapped file itself.

        Raises:
            CheckpointError: no such tensor, another shape, an unsupported dtype, or a file that cannot be read.
        """
        return self._read(name, shape).to(self.dtype)

    def read_into(self, name: str, out: Tensor) -> None:
        """Writes the weight of that name into `out`, converting to its dtype. Raises as `tensor`."""
        out.copy_(self._read(name, tuple(out.shape)))

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The weight in the dtype it is stored in."""
        located = self._locate(name, shape)
        stored = located.stored
        try:
            file = self._open(stored.file)
            if located.expert is None:
                whole: Tensor = file.get_tensor(stored.name)
            else:
                whole = file.get_slice(stored.name)[located.expert]
        except (SafetensorError, OSError) as failure:
            raise CheckpointError(f"{stored.file}: {stored.name} cannot be read ({failure})") from None
        return located.cut(whole)

    def _locate(self, name: str, shape: tuple[int, ...]) -> Located:
        located = locate(name, self._stored)
        if located is None:
            advice = "download it again; or config.json is another model's"
            raise CheckpointError(f"{self.directory}: no safetensors file holds {name}; {advice}")
        where = f"{located.stored.file}: {name} is"
        if located.shape != shape:
            advice = "config.json or the file is another model's"
            raise CheckpointError(f"{where} {list(located.shape)}, but {list(shape)} by config.json; {advice}")
        require_dtype(located.stored.dtype, where)
        return located

    def _open(self, file: Path) -> Any:
        with self._lock:
            if file not in self._files:
                self._files[file] = safe_open(file, framework="pt", device="cpu")
            return self._files[file]


def _config_file(directory: Path) -> Path:
    if not directory.is_dir():
        wrong = "is not a directory" if directory.exists() else "no such directory"
        raise CheckpointError(f"{directory}: {wrong}; name one with config.json and safetensors files")
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{directory}: holds no config.json; name the directory that save_pretrained wrote")
    return file


def _eos_token_ids(directory: Path, config: ModelConfig) -> tuple[int, ...]:
    """generation_config.json has the last word on where generation ends, as in transformers."""
    file = directory / "generation_config.json"
    written = eos_token_ids(read_json(file), str(file)) if file.is_file() else ()
    return written or config.eos_token_ids

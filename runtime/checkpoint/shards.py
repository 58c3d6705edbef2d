"""Finds the safetensors files of a checkpoint directory and lists the tensors in them."""

from pathlib import Path

from hrm.errors import CheckpointError
from runtime.checkpoint.header import StoredTensor, read_header
from runtime.checkpoint.json_file import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name.

    Raises:
        CheckpointError: no weights, a shard that is missing or damaged, or one that lacks a tensor the index names.
    """
    index = directory / _INDEX
    if index.is_file():
        return _of_index(index)
    single = directory / _SINGLE
    if single.is_file():
        return read_header(single)
    raise _no_weights(directory)


def _of_index(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must name a file for every tensor; download it again")
    headers = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing, though {_INDEX} names it; download the missing shard")
        headers[name] = read_header(file)
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise CheckpointError(f"{index}: {name} does not hold {tensor}; download both files again")
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _no_weights(directory: Path) -> CheckpointError:
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    hint = f"; {others[0]} is in another format, convert it with save_pretrained" if others else ""
    return CheckpointError(f"{directory}: holds neither {_SINGLE} nor {_INDEX}{hint or '; download the weights'}")

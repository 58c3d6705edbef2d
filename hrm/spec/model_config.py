"""Reads a model from a Hugging Face config.json, one of the shipped ones or any other of a known family."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from hrm.errors import ModelConfigError
from hrm.spec.config_fields import ConfigFields
from hrm.spec.families import FAMILIES
from hrm.spec.model import ModelSpec
from hrm.spec.suggest import unknown_name
from hrm.spec.text_file import read_text, unique_keys

_PACKAGE = "hrm.data.models"


def shipped_models() -> tuple[str, ...]:
    """Names of the models whose config ships with the package, sorted."""
    names = (entry.name for entry in resources.files(_PACKAGE).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def load_model(name_or_path: str) -> ModelSpec:
    """The model of a config.json, of a directory that holds one, or of that name among the shipped ones.

    Looked up as a path first. A shipped name may be written in any case.

    Raises:
        UnknownNameError: neither a path nor a shipped name; names close ones.
        ModelConfigError: a file that cannot be read, or a config that `model_from_hf` refuses.
    """
    path = Path(name_or_path)
    if name_or_path and _exists(path):
        return _load_path(path)
    name = name_or_path.lower()
    if name in shipped_models():
        text = (resources.files(_PACKAGE) / f"{name}.json").read_text(encoding="utf-8")
        return model_from_hf(_parse(text, f"{name}.json"), name, f"{name}.json")
    if path.suffix == ".json" or name_or_path.startswith(("/", ".", "~")):
        raise ModelConfigError(f"{name_or_path[:200]}: no such file; give a config.json or a shipped name")
    raise unknown_name("model", name.rsplit("/", 1)[-1], shipped_models())


def model_from_hf(config: Mapping[str, Any], name: str, where: str) -> ModelSpec:
    """The model that a parsed config.json describes; `where` names the file in messages.

    Fields that change no shape are not read; keys unknown to the family are ignored, as Hugging Face does.

    Raises:
        ModelConfigError: an unsupported model_type, or a field that is missing, of the wrong type, out of
            range or in contradiction with another; names `where` and the field.
    """
    if not isinstance(config, Mapping):
        found = type(config).__name__
        raise ModelConfigError(f"{where}: must hold one JSON object with model_type, not a {found}")
    fields = ConfigFields(config, where)
    model_type = fields.text("model_type")
    if model_type not in FAMILIES:
        unknown = unknown_name("model family", model_type, FAMILIES, f"{where}: model_type")
        raise ModelConfigError(str(unknown))
    return FAMILIES[model_type](fields, name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as failure:
        raise ModelConfigError(f"{str(path)[:200]!r}: cannot be looked up ({failure.strerror})") from None
    except ValueError:  # a NUL byte: no path, and no name either
        return False


def _load_path(path: Path) -> ModelSpec:
    is_directory = path.is_dir()
    file = path / "config.json" if is_directory else path
    if is_directory and not _exists(file):
        raise ModelConfigError(f"{path}: is a directory without config.json; name one that holds a model")
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return model_from_hf(_parse(read_text(file, ModelConfigError), str(file)), name, str(file))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as failure:
        raise ModelConfigError(f"{where}: is not valid JSON ({str(failure)[:200]})") from None

"""The families that the runtime can run."""

from collections.abc import Mapping

from hrm.errors import ModelConfigError
from runtime.models import mixtral, olmoe, qwen2_moe, qwen3_moe
from runtime.models.family import Family

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.model_type: module.FAMILY for module in (mixtral, olmoe, qwen2_moe, qwen3_moe)
}


def family_of(raw: Mapping[str, object], where: str) -> Family:
    """The family of a parsed config.json; `where` names the file.

    Raises:
        ModelConfigError: model_type is missing or not one that the runtime can run.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        found = "is missing" if model_type is None else f"{str(model_type)[:80]!r} cannot be run"
        raise ModelConfigError(f"{where}: model_type {found}; the runtime runs {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]

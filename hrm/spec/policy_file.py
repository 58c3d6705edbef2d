"""Reads and writes a policy as YAML."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from hrm.errors import PolicyError
from hrm.spec.policy import Policy
from hrm.spec.text_file import read_text, read_yaml_mapping, write_text


def load_policy(path: Path) -> Policy:
    """The policy in a YAML file.

    Raises:
        PolicyError: unreadable, malformed, a missing or unknown field, or fields that contradict each other.
    """
    data = read_yaml_mapping(read_text(path, PolicyError), str(path), PolicyError)
    try:
        return Policy.model_validate(data.get("policy", data))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "policy"
        raise PolicyError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from None


def save_policy(policy: Policy, path: Path) -> None:
    """Writes a policy that `load_policy` reads back unchanged.

    Raises:
        PolicyError: the file cannot be written.
    """
    write_text(path, yaml.safe_dump(policy.model_dump(), sort_keys=False), PolicyError)

"""Reads a workload by name, from YAML, or from a JSONL of prompts."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from hrm.errors import WorkloadError
from hrm.spec.suggest import unknown_name
from hrm.spec.text_file import exists, is_file, read_text, read_yaml_mapping
from hrm.spec.workload import Workload, make_workload, workload_from_lengths

BYTES_PER_TOKEN = 4  # stated rule of thumb for prompts given as text without a tokenizer
FIELDS = ("name", "prompt_len", "prompt_len_max", "prompt_lens", "gen_len", "padded", "source")


def shipped_workloads() -> tuple[str, ...]:
    """Names of the workloads that ship with the package."""
    files = resources.files("hrm.data.workloads").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def load_workload(name_or_path: str, gen_len: int | None = None, padded: bool | None = None) -> Workload:
    """A workload looked up as a path (.yaml, .yml, .jsonl), then among the shipped ones.

    `gen_len` and `padded` replace what the file states; a JSONL states neither, so `gen_len` is needed there.

    Raises:
        UnknownNameError: neither a file nor a shipped name.
        WorkloadError: an unreadable file or impossible lengths.
    """
    path = Path(name_or_path)
    if path.suffix == ".jsonl":
        return _from_jsonl(path, gen_len, bool(padded))
    stem = name_or_path.removesuffix(".yaml").removesuffix(".yml")
    if is_file(path) or stem not in shipped_workloads():
        if not exists(path):
            raise unknown_name("workload", name_or_path, shipped_workloads())
        return _from_yaml(read_text(path, WorkloadError), str(path), gen_len, padded)
    text = (resources.files("hrm.data.workloads") / f"{stem}.yaml").read_text(encoding="utf-8")
    return _from_yaml(text, f"{stem}.yaml", gen_len, padded)


def _from_yaml(text: str, where: str, gen_len: int | None, padded: bool | None) -> Workload:
    data = read_yaml_mapping(text, where, WorkloadError)
    unknown = sorted(set(data) - set(FIELDS))
    if unknown:
        raise WorkloadError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
    generated = data.get("gen_len") if gen_len is None else gen_len
    stated, name = data.get("padded", False), data.get("name", where)
    if not isinstance(stated, bool):
        raise WorkloadError(f"{where}: padded must be true or false, not {stated!r}")
    if not isinstance(name, str):
        raise WorkloadError(f"{where}: name must be text, not {name!r}")
    pad = stated if padded is None else padded
    if "prompt_lens" in data:
        if "prompt_len" in data or "prompt_len_max" in data:
            raise WorkloadError(f"{where}: give prompt_lens, or prompt_len and prompt_len_max, not both")
        lengths = data["prompt_lens"]
        if not isinstance(lengths, list):
            raise WorkloadError(f"{where}: prompt_lens must be a list of token counts")
        return workload_from_lengths(lengths, generated, pad, name, where)
    return make_workload(generated, data.get("prompt_len"), data.get("prompt_len_max"), pad, name, where)


def _from_jsonl(path: Path, gen_len: int | None, padded: bool) -> Workload:
    if gen_len is None:
        raise WorkloadError(f"{path}: a JSONL of prompts states no generation length; add --gen-len")
    lines = read_text(path, WorkloadError).splitlines()
    lengths = [_line_length(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    return workload_from_lengths(lengths, gen_len, padded, path.stem, str(path))


def _line_length(line: str, where: str) -> object:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise WorkloadError(f"{where}: not JSON ({error})") from None
    if isinstance(row, dict) and "prompt_len" in row:
        return row["prompt_len"]
    if isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"]:
        return max(1, round(len(row["prompt"].encode()) / BYTES_PER_TOKEN))
    raise WorkloadError(f'{where}: needs "prompt" (text, counted as bytes / {BYTES_PER_TOKEN}) or "prompt_len"')

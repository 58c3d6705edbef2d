"""The published end-to-end results and what is known of the systems behind them, from the package's own data files."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedRow:
    """One published throughput, generated tokens/s; batch sizes are None where none was published."""

    setting: str
    workload: str
    gen_len: int
    system: str
    schedule: str
    padded: bool
    throughput: float
    micro_batch_size: int | None = None
    num_micro_batches: int | None = None
    requests_finished: int | None = None
    total_seconds: float | None = None
    policy_source: str | None = None

    @property
    def case(self) -> tuple[str, str, int]:
        """What systems are compared on: machine, workload and generation length."""
        return self.setting, self.workload, self.gen_len


@cache
def published_data() -> dict[str, Any]:
    """The file of published numbers: machines, workloads, model."""
    return _read("moe_lightning.yaml")


@cache
def system_facts() -> dict[str, Any]:
    """How each published system ran."""
    return _read("systems.yaml")


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every published end-to-end throughput, in the order of the file."""
    return tuple(PublishedRow(**row) for row in published_data()["rows"])


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("hrm.data.published") / name).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data

"""Changes one named field of a machine, workload or policy: the axis of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from hrm.errors import HrmError, PolicyError
from hrm.predict.rates import Rates
from hrm.search.sensitivity import scaled_rates
from hrm.spec.hardware import RESOURCES, HardwareProfile
from hrm.spec.policy import Policy, attention_place_of
from hrm.spec.suggest import unknown_name
from hrm.spec.units import parse_quantity
from hrm.spec.workload import make_workload

WORKLOAD_FIELDS = ("prompt_len", "prompt_len_max", "gen_len")
POLICY_FIELDS = (
    "batch_size", "micro_batch_size", "attention_on_gpu", "experts_on_gpu", "weights_on_gpu", "kv_on_gpu",
    "dense_weights_on_gpu", "weights_on_disk",
)  # fmt: skip
MAX_POINTS = 10_000


@dataclass(frozen=True)
class Axis:
    """A field and the values it takes: SI numbers, or factors of the machine's own number."""

    field: str
    values: tuple[float, ...]
    is_factor: bool

    @property
    def target(self) -> str:
        """ "profile", "workload" or "policy"."""
        if self.field in RESOURCES:
            return "profile"
        return "workload" if self.field in WORKLOAD_FIELDS else "policy"


def parse_axis(text: str) -> Axis:
    """An axis from `FIELD=START:STOP:COUNT` (evenly spaced) or `FIELD=A,B,C`.

    Machine fields take quantities ("64 GiB", "16 GB/s") or factors ("0.5x"); workload and policy fields plain numbers.

    Raises:
        UnknownNameError: a field that does not exist.
        HrmError: a malformed range, a quantity without unit, or more than 10,000 values.
    """
    field, equals, spec = text.partition("=")
    field, known = field.strip(), (*RESOURCES, *WORKLOAD_FIELDS, *POLICY_FIELDS)
    if field not in known:
        raise unknown_name("field", field, known, "--vary")
    if not equals or not spec.strip():
        raise HrmError(f"--vary {text}: write {field}=START:STOP:COUNT or {field}=A,B,C")
    pieces = spec.split(":") if ":" in spec else spec.split(",")
    is_factor = pieces[0].strip().endswith("x")
    where = f"--vary {field}"
    if is_factor and field not in RESOURCES:
        raise HrmError(f"{where}: only machine fields take factors; write plain numbers")
    if ":" not in spec:
        return Axis(field, tuple(_value(p, field, is_factor, where) for p in pieces), is_factor)
    if len(pieces) != 3 or not pieces[2].strip().isdigit() or not 1 <= int(pieces[2]) <= MAX_POINTS:
        raise HrmError(f"{where}={spec}: write START:STOP:COUNT with a count from 1 to {MAX_POINTS:,}")
    start, stop = (_value(p, field, is_factor, where) for p in pieces[:2])
    return Axis(field, tuple(float(v) for v in np.linspace(start, stop, int(pieces[2]))), is_factor)


def _value(text: str, field: str, is_factor: bool, where: str) -> float:
    word = text.strip()
    if word.endswith("x") != is_factor:
        raise HrmError(f"{where}: {word!r}: give all values as factors (0.5x) or none")
    if field in RESOURCES and not is_factor:
        if field in ("gpu_compute", "cpu_compute"):
            raise HrmError(f"{where}: compute has a peak per dtype; vary it by factors, such as 0.5x:2x:4")
        dimension = "bytes" if field in ("gpu_memory", "cpu_memory") else "bytes_per_s"
        return parse_quantity(word, dimension, where)
    try:
        number = float(word.removesuffix("x"))
    except ValueError:
        raise HrmError(f"{where}: {word!r} is not a number") from None
    if not np.isfinite(number) or number < 0:
        raise HrmError(f"{where}: {word!r} must be a finite number, zero or more")
    return number


def vary_rates(rates: Rates, axis: Axis, value: float) -> Rates:
    """The cost model with a machine or workload field changed.

    Raises:
        HrmError: an impossible value.
    """
    if axis.target == "profile":
        profile = rates.machine.profile
        factor = value if axis.is_factor else value / _current(profile, axis.field)
        return scaled_rates(rates, axis.field, factor)
    work = rates.workload
    if axis.field != "gen_len" and work.prompt_len_sq_avg != work.prompt_len_avg**2:
        raise HrmError(
            f"--vary {axis.field}: workload {work.name} has a length for every prompt; vary gen_len, or use averages"
        )
    if axis.field == "gen_len":
        checked = make_workload(_number(value), work.prompt_len_avg, work.prompt_len_max, work.padded, where="--vary")
        return replace(rates, workload=replace(work, gen_len=checked.gen_len))
    fields = {"prompt_len": work.prompt_len_avg, "prompt_len_max": work.prompt_len_max, "gen_len": work.gen_len}
    fields[axis.field] = value
    if axis.field == "prompt_len":
        fields["prompt_len_max"] = max(int(np.ceil(value)), work.prompt_len_max)
    changed = make_workload(
        _number(fields["gen_len"]), fields["prompt_len"], _number(fields["prompt_len_max"]), work.padded, where="--vary"
    )
    return replace(rates, workload=changed)


def _number(value: float) -> object:
    return int(value) if value == int(value) else value


def _current(profile: HardwareProfile, field: str) -> float:
    """The machine's own number, as a sweep states it: usable memory, achieved link bandwidth."""
    memory = {"gpu_memory": profile.gpu.memory_usable, "cpu_memory": profile.cpu.memory_usable}
    memory |= {
        "gpu_memory_bandwidth": profile.gpu.memory_bandwidth,
        "cpu_memory_bandwidth": profile.cpu.memory_bandwidth,
    }
    if field in memory:
        return memory[field].value
    return profile.achieved_link_bandwidth("disk_read" if field == "disk" else field)


def vary_policy(policy: Policy, axis: Axis, value: float) -> Policy:
    """The policy with one field changed and all others kept.

    Raises:
        PolicyError: the changed policy contradicts itself.
    """
    whole = axis.field in ("batch_size", "micro_batch_size")
    if whole and value != int(value):
        raise PolicyError(f"--vary {axis.field}: {value:g} is not a whole number")
    update: dict[str, object] = {axis.field: int(value) if whole else float(value)}
    if axis.field == "batch_size" and policy.ffn_batching == "batch":
        update["ffn_batch_size"] = int(value)
    if axis.field == "micro_batch_size" and policy.ffn_batching == "micro_batch":
        update["ffn_batch_size"] = int(value)
    if axis.field in ("attention_on_gpu", "kv_on_gpu"):
        shares = {"attention_on_gpu": policy.attention_on_gpu, "kv_on_gpu": policy.kv_on_gpu, axis.field: value}
        update["attention_place"] = attention_place_of(shares["attention_on_gpu"], shares["kv_on_gpu"])
    try:
        return Policy.model_validate({**policy.model_dump(), **update})
    except ValidationError as error:
        raise PolicyError(f"--vary {axis.field}={value:g}: {error.errors()[0]['msg']}") from None


def check_axes(axes: Sequence[Axis]) -> None:
    """Refuses an empty or too large grid, and a field given twice.

    Raises:
        HrmError: as said.
    """
    names = [axis.field for axis in axes]
    if not axes or len(set(names)) != len(names):
        raise HrmError("--vary: give at least one field, each at most once")
    points = int(np.prod([len(axis.values) for axis in axes]))
    if points > MAX_POINTS:
        raise HrmError(f"--vary: {points:,} points; at most {MAX_POINTS:,}")

"""The efficiency section of a hardware profile file: measured shares of the peaks stated above it."""

from typing import Any

from hrm.errors import ProfileError
from hrm.spec.hardware_parts import OP_CLASSES, Efficiency, Level, Link, Number, OperatorEfficiency, TokenStep
from hrm.spec.hardware_reader import Reader
from hrm.spec.suggest import unknown_name


def read_efficiency(reader: Reader, raw: object, levels: dict[str, Level], links: dict[str, Link]) -> Efficiency:
    """Shares of the peaks, each written in % or as the rate achieved. Raises as `Reader` does."""
    if raw is None:
        return Efficiency()
    fields = reader.mapping(raw, "efficiency", (), ("gpu", "cpu", "links"))
    stated = {}
    for name, level in levels.items():
        table = _named(reader, fields, name)
        stated[name] = {op: _operator(reader, entry, name, op, level) for op, entry in table.items()}
    shares = _named(reader, fields, "links")
    return Efficiency(**stated, links={name: _link_share(reader, share, name, links) for name, share in shares.items()})


def _named(reader: Reader, fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {} if fields.get(name) is None else reader.free_mapping(fields[name], f"efficiency.{name}")


def _link_share(reader: Reader, raw: object, name: str, links: dict[str, Link]) -> Number:
    if name not in links:
        raise unknown_name("link", name, links, reader.where("efficiency.links"))
    return reader.share(raw, f"efficiency.links.{name}", links[name].bandwidth.value, "bytes_per_s")


def _operator(reader: Reader, raw: object, level_name: str, op_class: str, level: Level) -> OperatorEfficiency:
    field = f"efficiency.{level_name}.{op_class}"
    if op_class not in OP_CLASSES:
        raise unknown_name("operator class", op_class, OP_CLASSES, reader.where(f"efficiency.{level_name}"))
    fields = reader.mapping(raw, field, (), ("compute", "compute_by_tokens", "memory"))
    compute, memory, table = fields.get("compute"), fields.get("memory"), fields.get("compute_by_tokens")
    bandwidth = level.memory_bandwidth.value
    return OperatorEfficiency(
        compute=None if compute is None else _compute(reader, compute, f"{field}.compute", level)[0],
        memory=None if memory is None else reader.share(memory, f"{field}.memory", bandwidth, "bytes_per_s"),
        compute_by_tokens=None if table is None else _table(reader, table, f"{field}.compute_by_tokens", level),
    )


def _table(reader: Reader, raw: object, field: str, level: Level) -> tuple[TokenStep, ...]:
    if not isinstance(raw, list):
        raise ProfileError(f"{reader.where(field)}: must be a list of steps, each with from_tokens")
    steps = []
    for i, entry in enumerate(raw):
        efficiency, fields = _compute(reader, entry, f"{field}[{i}]", level, ("from_tokens",))
        start = reader.whole(fields["from_tokens"], f"{field}[{i}].from_tokens")
        steps.append(TokenStep(from_tokens=start, efficiency=efficiency))
    return tuple(steps)


def _compute(
    reader: Reader, raw: object, field: str, level: Level, required: tuple[str, ...] = ()
) -> tuple[Number, dict[str, Any]]:
    """A compute efficiency in %, or a rate with the `dtype` whose peak it is a share of; and its fields."""
    fields = reader.number_fields(raw, field, "ratio", ("dtype",), required)
    peaks = level.processor.peak_flops if level.processor else {}
    dtype = reader.optional_text(fields, "dtype", field)
    if dtype is None:
        if isinstance(fields["value"], str) and not fields["value"].rstrip().endswith("%"):
            raise ProfileError(f"{reader.where(field)}: an achieved rate needs dtype: (whose peak?), or write it in %")
        return reader.share_of(fields, field, 1.0, "ratio"), fields
    if dtype not in peaks:
        raise unknown_name("dtype", dtype, peaks, reader.where(f"{field}.dtype"))
    return reader.share_of(fields, field, peaks[dtype].value, "flops_per_s"), fields

"""The sections of a hardware profile file: memory levels with their processors, the disk, the links."""

from typing import Any

from hrm.errors import ProfileError
from hrm.spec.hardware_efficiency import read_efficiency
from hrm.spec.hardware_parts import Disk, Level, Link, Processor
from hrm.spec.hardware_reader import Reader

_LEVEL = ("processor", "memory_capacity", "memory_usable", "memory_bandwidth")
_OVERHEADS = {"gpu": ("task_overhead", "graph_overhead"), "cpu": ("task_overhead", "gate_overhead")}


def read_parts(reader: Reader, fields: dict[str, Any]) -> dict[str, Any]:
    """Every field of HardwareProfile but `sources`. Raises ProfileError, UnitError or UnknownNameError."""
    gpu, cpu = _level(reader, fields["gpu"], "gpu"), _level(reader, fields["cpu"], "cpu")
    links = {
        name: _link(reader, raw, f"links.{name}") for name, raw in reader.free_mapping(fields["links"], "links").items()
    }
    return {
        "name": reader.text(fields["name"], "name"),
        "title": reader.text(fields["title"], "title"),
        "device_count": reader.whole(fields["device_count"], "device_count"),
        "gpu": gpu,
        "cpu": cpu,
        "disk": _disk(reader, fields.get("disk")),
        "links": links,
        "efficiency": read_efficiency(reader, fields.get("efficiency"), {"gpu": gpu, "cpu": cpu}, links),
    }


def _level(reader: Reader, raw: object, field: str) -> Level:
    fields = reader.mapping(raw, field, _LEVEL, _OVERHEADS[field])
    processor = reader.mapping(fields["processor"], f"{field}.processor", ("name", "peak_flops"), ("cores",))
    peaks_field = f"{field}.processor.peak_flops"
    peaks = reader.free_mapping(processor["peak_flops"], peaks_field)
    if not peaks:
        raise ProfileError(f"{reader.where(peaks_field)}: states no peak; add at least one dtype")
    cores = processor.get("cores")
    overheads = {
        name: reader.number(fields[name], f"{field}.{name}", "seconds") for name in _OVERHEADS[field] if name in fields
    }
    return Level(
        processor=Processor(
            name=reader.text(processor["name"], f"{field}.processor.name"),
            peak_flops={dtype: reader.peak_flops(peak, f"{peaks_field}.{dtype}") for dtype, peak in peaks.items()},
            cores=None if cores is None else reader.whole(cores, f"{field}.processor.cores"),
        ),
        memory_capacity=reader.number(fields["memory_capacity"], f"{field}.memory_capacity", "bytes"),
        memory_usable=reader.number(fields["memory_usable"], f"{field}.memory_usable", "bytes"),
        memory_bandwidth=reader.number(fields["memory_bandwidth"], f"{field}.memory_bandwidth", "bytes_per_s"),
        **overheads,
    )


def _disk(reader: Reader, raw: object) -> Disk | None:
    if raw is None:
        return None
    fields = reader.mapping(raw, "disk", ("memory_capacity", "memory_usable"))
    return Disk(**{key: reader.number(number, f"disk.{key}", "bytes") for key, number in fields.items()})


def _link(reader: Reader, raw: object, field: str) -> Link:
    fields = reader.mapping(raw, field, ("technology", "bandwidth", "latency"))
    return Link(
        technology=reader.text(fields["technology"], f"{field}.technology"),
        bandwidth=reader.number(fields["bandwidth"], f"{field}.bandwidth", "bytes_per_s"),
        latency=reader.number(fields["latency"], f"{field}.latency", "seconds"),
    )

"""How much a calibration measures: sizes of buffers, steps of each series, repeats."""

from dataclasses import dataclass

from hrm.errors import HrmError
from hrm.spec.dtypes import bytes_per_element
from runtime.calibration.shapes import Shapes, reduced

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_SHARE = 8  # no buffer takes more than this part of a memory, so that a few fit side by side


BESIDE = 64 << 20  # bytes for activations, KV cache and copies


@dataclass(frozen=True)
class Effort:
    """At most `repeats` repeats of at least `shortest` seconds each, and about `seconds` in all per point."""

    repeats: int
    shortest: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Buffers in bytes. `weight_bytes` are cycled through so that none stays in a cache, likewise `kv_bytes`."""

    shapes: Shapes
    quick: bool
    effort: Effort
    copy_sizes: tuple[int, ...]
    memory_bytes: int
    gpu_memory_bytes: int
    weight_bytes: int
    gpu_weight_bytes: int
    kv_bytes: int
    gpu_kv_bytes: int
    cpu_rows: tuple[int, ...]
    gpu_rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    contention_seconds: float
    file_bytes: int


def make_plan(shapes: Shapes, dtype: str, gpu_usable: int, cpu_usable: int, quick: bool) -> Plan:
    """The plan for memories of `gpu_usable` and `cpu_usable` bytes.

    Raises:
        HrmError: a memory that does not hold two experts and what is measured beside them.
    """
    shapes = reduced(shapes) if quick else shapes
    expert_bytes = int(shapes.expert_elements * bytes_per_element(dtype))
    for name, usable in (("GPU", gpu_usable), ("CPU", cpu_usable)):
        if usable < 2 * expert_bytes + BESIDE:
            raise HrmError(
                f"{usable / _GIB:.2f} GiB of {name} memory do not hold two experts of {shapes.model} "
                f"({expert_bytes / _MIB:.1f} MiB each) and {BESIDE >> 20} MiB beside them; free some, "
                f"raise --{name.lower()}-memory, or choose --model"
            )
    return _quick(shapes) if quick else _full(shapes, expert_bytes, gpu_usable, cpu_usable)


def _quick(shapes: Shapes) -> Plan:
    return Plan(
        shapes=shapes,
        quick=True,
        effort=Effort(repeats=3, shortest=0.0, seconds=0.02),
        copy_sizes=(64 * _KIB, _MIB, 4 * _MIB),
        memory_bytes=32 * _MIB,
        gpu_memory_bytes=32 * _MIB,
        weight_bytes=8 * _MIB,
        gpu_weight_bytes=8 * _MIB,
        kv_bytes=4 * _MIB,
        gpu_kv_bytes=4 * _MIB,
        cpu_rows=(1, 16, 64),
        gpu_rows=(1, 16, 128),
        contexts=(128,),
        prompts=(64,),
        contention_seconds=0.05,
        file_bytes=4 * _MIB,
    )


def _full(shapes: Shapes, expert_bytes: int, gpu_usable: int, cpu_usable: int) -> Plan:
    gpu_share, cpu_share = gpu_usable // _SHARE, cpu_usable // _SHARE
    largest_copy = min(gpu_share, cpu_share)
    sizes = tuple(size for size in (64 * _KIB * 4**i for i in range(7)) if size <= largest_copy)
    return Plan(
        shapes=shapes,
        quick=False,
        effort=Effort(repeats=20, shortest=0.002, seconds=0.4),
        copy_sizes=sizes,
        memory_bytes=min(_GIB, cpu_share),
        gpu_memory_bytes=min(_GIB, gpu_share),
        weight_bytes=max(expert_bytes, min(_GIB, cpu_share)),
        gpu_weight_bytes=max(expert_bytes, min(3 * _GIB, 2 * gpu_share)),
        kv_bytes=min(_GIB // 2, cpu_share),
        gpu_kv_bytes=min(_GIB, gpu_share),
        cpu_rows=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
        gpu_rows=(1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        contexts=(140, 512),
        prompts=(128, 512, 2048),
        contention_seconds=0.7,
        file_bytes=_GIB,
    )

"""The buffers of a pass.

A buffer is memory that is used again and again; what lies in it at a time is a version of it. Versions of one buffer
are numbered in the order in which they have to follow each other.
"""

from dataclasses import dataclass, field

Buffer = tuple[str, object]
"""A name with places for (which one, version), and which one: a micro-batch, or a number."""
Version = tuple[int, int]
HIDDEN = "hidden state of M{0} entering L{1}"
QKV = "Q, K, V of M{0} in L{1} on the GPU"
HOST_QKV = "Q, K, V of M{0} in L{1} on the host"
ATTENDED = "attention result of M{0} in L{1} on the GPU"
HOST_ATTENDED = "attention result of M{0} in L{1} on the host"
ROUTED = "routed tokens of M{0} in L{1}"
HOST_ROUTED = "routed tokens of M{0} in L{1} on the host"
HOST_RESULT = "result of the CPU's experts for M{0} in L{1}"
SPILLED = "hidden state of M{0} entering L{1} on the host"
KV = "KV staging buffer {0}, fetch {1}"
DENSE = "dense weight buffer {0}, unit {1}"
PAGE = "page slot {0}, page {1}"
PREFETCHED = "slots {0} of predicted experts, MoE layer {1}"
CORRECTED = "slots of corrected experts, MoE layer {1}"
READ = "disk buffer {0}, page {1}"
STAGED_KV = "staging buffer {0} of cached K, V, fetch {1}"
STAGED = "staging buffer {0}, page {1}"
HOST_SHARE = "disk buffer {0} of the CPU's experts, read {1}"

PARTIAL, WHOLE, RELOADED = 0, 1, 2  # of a hidden state: before and after its sum over the GPUs, and back from the host
DENSE_BUFFERS = 2  # one unit of dense weights is in use, the next one on its way


@dataclass(slots=True)
class Use:
    """Tasks that write and read one version. in_place: a pass finds it there; kept: it is for the next pass."""

    writers: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    in_place: bool = False
    kept: bool = False


def describe(buffer: Buffer, version: Version) -> str:
    """One version of a buffer in words."""
    name, which = buffer
    return name.format("*" if which is None else which, version[0])


class BufferTable:
    """`versions[buffer][version]`: who uses what."""

    def __init__(self) -> None:
        self.versions: dict[Buffer, dict[Version, Use]] = {}

    def use(self, name: str, which: object, number: int, stage: int = 0) -> Use:
        """The uses of one version, for more to be noted."""
        return self.versions.setdefault((name, which), {}).setdefault((number, stage), Use())

    def read(self, task: int, name: str, which: object, number: int, stage: int = 0) -> None:
        """Notes that a task reads a version."""
        self.use(name, which, number, stage).readers.append(task)

    def write(self, task: int, name: str, which: object, number: int, stage: int = 0) -> None:
        """Notes that a task writes a version, or a part of it."""
        self.use(name, which, number, stage).writers.append(task)

"""What a user asks of `hrm validate`, checked before anything is read."""

from dataclasses import dataclass
from pathlib import Path

from hrm.errors import HrmError
from hrm.schedule.registry import schedule_names
from hrm.spec.suggest import unknown_name
from hrm.spec.units import parse_quantity
from runtime.dtypes import DTYPES

DEVICES = ("cuda", "cpu")
DEFAULT_MODEL = "mixtral-tiny"
TINY_GPU_MEMORY = float(40 << 20)  # of the default model, so that some of its weights are streamed
TINY_CPU_MEMORY = float(64 << 20)
DEFAULT_CONTEXTS = (64, 256)
DEFAULT_PASSES = 3
DEFAULT_GEN_LEN = 16


@dataclass(frozen=True)
class ValidateOptions:
    """The command line of `hrm validate`; memory in bytes. Empty schedules, batches and contexts: the default ones."""

    profile: str
    model: Path | None = None
    synthetic: str | None = None
    layers: int | None = None
    dtype: str | None = None
    device: str | None = None
    gpu_memory: float | None = None
    cpu_memory: float | None = None
    schedules: tuple[str, ...] = ()
    policies: tuple[Path, ...] = ()
    contexts: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    passes: int = DEFAULT_PASSES
    gen_len: int = DEFAULT_GEN_LEN
    quick: bool = False

    @property
    def is_default_model(self) -> bool:
        """Whether no model is named."""
        return self.model is None and self.synthetic is None

    @property
    def context_lens(self) -> tuple[int, ...]:
        """Contexts to run at, longest first."""
        chosen = self.contexts or DEFAULT_CONTEXTS[: 1 if self.quick else None]
        return tuple(sorted(set(chosen), reverse=True))

    @property
    def gpu_memory_limit(self) -> float | None:
        """Stated, or that of the default model."""
        return TINY_GPU_MEMORY if self.gpu_memory is None and self.is_default_model else self.gpu_memory

    @property
    def cpu_memory_limit(self) -> float | None:
        """Stated, or that of the default model."""
        return TINY_CPU_MEMORY if self.cpu_memory is None and self.is_default_model else self.cpu_memory

    def check(self) -> None:
        """Refuses options that contradict each other, or are out of range.

        Raises:
            HrmError: says which. UnknownNameError: a schedule that does not exist.
        """
        shortest = self.gen_len + 1
        for wrong, message in (
            (self.model is not None and self.synthetic is not None, "give --model DIR or --synthetic NAME, not both"),
            (
                self.model is not None and self.layers is not None,
                "--layers is for --synthetic; a checkpoint has its own",
            ),
            (self.dtype not in (None, *DTYPES), f"--dtype {self.dtype}: must be one of {', '.join(DTYPES)}"),
            (self.device not in (None, *DEVICES), f"--device {self.device}: must be cuda or cpu"),
            (min(self.context_lens) < shortest, f"--contexts: the least is {shortest} tokens, --gen-len and one"),
            (min(self.batches, default=1) < 1, "--batches: every batch has at least one sequence"),
            (bool(self.policies and self.batches), "--batches cuts searched policies; leave it out with --policies"),
        ):
            if wrong:
                raise HrmError(message)
        for name in self.schedules:
            if name not in schedule_names():
                raise unknown_name("schedule", name, schedule_names())


def parse_numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; none for None. Raises HrmError."""
    try:
        return () if text is None else tuple(int(word) for word in text.split(","))
    except ValueError:
        raise HrmError(f"{option} {text}: must be whole numbers with commas between them, such as 64,256") from None


def parse_names(text: str | None) -> tuple[str, ...]:
    """Words with commas between them; none for None."""
    return () if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def parse_bytes(text: str | None, option: str) -> float | None:
    """Such as 16GiB. Raises UnitError."""
    return None if text is None else parse_quantity(text, "bytes", option)

"""What a user asks of `hrm run`, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import HrmError
from runtime.dtypes import DTYPES

if TYPE_CHECKING:
    from runtime.requests.output_file import Mode

DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class RunOptions:
    """The command line of `hrm run`; gpu_memory is in bytes."""

    model: Path | None
    synthetic: str | None
    layers: int | None
    policy: Path | None
    profile: str | None
    schedule: str
    input: Path | None
    output: Path | None
    prompts: Path | None
    num_requests: int | None
    resume: bool
    overwrite: bool
    gen_len: int
    temperature: float
    top_p: float
    seed: int
    ignore_eos: bool
    device: str | None
    gpu_memory: float | None
    dtype: str | None
    trace: Path | None
    plot: Path | None
    trace_routing: Path | None = None
    predictor: Path | None = None
    token_scheduler: bool = False

    @property
    def mode(self) -> Mode:
        """How the output file is opened."""
        return "resume" if self.resume else "overwrite" if self.overwrite else "new"

    def check(self) -> None:
        """Refuses options that contradict each other, or are out of range.

        Raises:
            HrmError: says which.
        """
        for wrong, message in (*self._sources(), *self._outputs(), *self._values()):
            if wrong:
                raise HrmError(message)

    def _sources(self) -> tuple[tuple[bool, str], ...]:
        real = self.model is not None
        return (
            (real == (self.synthetic is not None), "give --model DIR or --synthetic NAME, one of them"),
            (real and self.layers is not None, "--layers is for --synthetic; a checkpoint has its own"),
            (real and self.input is None, "--model needs --input FILE, a line of JSON per request"),
            (self.input is not None and self.prompts is not None, "give --input or --prompts, not both"),
            (real and self.prompts is not None, "--prompts is for --synthetic; give the texts by --input"),
            (self.input is not None and self.num_requests is not None, "--num-requests is for runs without --input"),
            (
                self.policy is None and self.profile is None and not self.resume,
                "give --policy FILE, or --profile for a search of the best one (hrm calibrate measures this machine)",
            ),
        )

    def _outputs(self) -> tuple[tuple[bool, str], ...]:
        return (
            (self.model is not None and self.output is None, "--model needs --output FILE for the results"),
            (self.resume and self.overwrite, "give --resume or --overwrite, not both"),
            (self.resume and self.output is None, "--resume needs --output, the file to continue"),
            (
                self.input is not None and self.output is not None and _same_file(self.input, self.output),
                "--output is the same file as --input; choose another",
            ),
            *self._routing(),
            (
                self.token_scheduler and self.predictor is None,
                "--token-scheduler goes by predicted paths; give --predictor too",
            ),
        )

    def _routing(self) -> tuple[tuple[bool, str], ...]:
        path = self.trace_routing
        return (
            (path is not None and path.suffix != ".npz", f"--trace-routing {path}: end the name in .npz"),
            (
                self.resume and path is not None and path.exists(),
                f"--trace-routing {path}: holds what an earlier attempt ran, and --resume runs only the rest; name "
                "another file",
            ),
        )

    def _values(self) -> tuple[tuple[bool, str], ...]:
        temperature_fits = math.isfinite(self.temperature) and self.temperature >= 0
        return (
            (not temperature_fits, f"--temperature {self.temperature:g}: must be zero (greedy) or more"),
            (not 0 < self.top_p <= 1, f"--top-p {self.top_p:g}: must lie in (0, 1]"),
            (self.dtype not in (None, *DTYPES), f"--dtype {self.dtype}: must be one of {', '.join(DTYPES)}"),
            (self.device not in (None, *DEVICES), f"--device {self.device}: must be cuda or cpu"),
        )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.exists() and other.exists() and one.samefile(other)
    except OSError:
        return False

"""What is asked of the machine: how long prompts are and how many tokens each request generates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hrm.errors import WorkloadError

MAX_LENGTH = 10_000_000  # a longer prompt is a typing error, not a workload


@dataclass(frozen=True)
class Workload:
    """A distribution of prompt lengths and one generation length, in tokens.

    `prompt_len_avg`, `prompt_len_sq_avg` are the first two moments and `prompt_len_max` the longest prompt. `padded`
    means every prompt is padded to the longest, as FlexGen and MoE-Lightning(p) do. Where only an average is known
    the second moment is its square, which leaves out the spread (prefill attention is then a lower bound).
    `prompt_lens` are the single lengths where they are known.
    """

    name: str
    prompt_len_avg: float
    prompt_len_max: int
    gen_len: int
    padded: bool
    prompt_len_sq_avg: float
    prompt_lens: tuple[int, ...] = ()

    @property
    def prompt_len(self) -> float:
        """Mean tokens a request's prompt occupies: the average, or the longest when padded."""
        return float(self.prompt_len_max) if self.padded else self.prompt_len_avg

    @property
    def prompt_len_sq(self) -> float:
        """Mean square of the tokens a prompt occupies (causal attention costs half of it)."""
        return float(self.prompt_len_max) ** 2 if self.padded else self.prompt_len_sq_avg

    @property
    def final_context_len(self) -> float:
        """Mean tokens whose K and V are cached when a request ends."""
        return self.prompt_len + self.gen_len

    @property
    def mean_context_len(self) -> float:
        """Mean context over a request's decode passes: s + gen_len / 2, the new token attending to itself.

        Decode pass i = 1 .. gen_len - 1 reads a context of s + i.
        """
        return self.prompt_len + self.gen_len / 2


def make_workload(
    gen_len: object,
    prompt_len_avg: object,
    prompt_len_max: object = None,
    padded: bool = False,
    name: str = "custom",
    where: str = "workload",
) -> Workload:
    """A workload from an average and a longest prompt length (the average itself when not given).

    Raises:
        WorkloadError: a length that is missing, not a number, not positive, huge, or average > maximum.
    """
    generated = _whole(gen_len, f"{where}: gen_len")
    average = _positive(prompt_len_avg, f"{where}: prompt_len")
    longest = math.ceil(average) if prompt_len_max is None else _whole(prompt_len_max, f"{where}: prompt_len_max")
    if average > longest:
        raise WorkloadError(
            f"{where}: prompt_len {average:g} (average) is above prompt_len_max {longest}; swap or raise the maximum"
        )
    return Workload(name, average, longest, generated, bool(padded), average**2)


def workload_from_lengths(lengths: Sequence[object], gen_len: object, padded: bool, name: str, where: str) -> Workload:
    """A workload from the length of every prompt, so that both moments are exact.

    Raises:
        WorkloadError: no lengths, or one that is not a positive whole number.
    """
    if not lengths:
        raise WorkloadError(f"{where}: holds no prompts; give at least one")
    whole = [_whole(n, f"{where}: prompt {i + 1}") for i, n in enumerate(lengths)]
    mean, square = sum(whole) / len(whole), sum(n * n for n in whole) / len(whole)
    return Workload(name, mean, max(whole), _whole(gen_len, f"{where}: gen_len"), bool(padded), square, tuple(whole))


def _positive(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WorkloadError(f"{where} must be a number of tokens, not {value!r}")
    if not math.isfinite(value) or not 1 <= value <= MAX_LENGTH:
        raise WorkloadError(f"{where} must lie between 1 and {MAX_LENGTH:,} tokens, not {value:g}")
    return float(value)


def _whole(value: object, where: str) -> int:
    number = _positive(value, where)
    if number != int(number):
        raise WorkloadError(f"{where} must be a whole number of tokens, not {number:g}")
    return int(number)

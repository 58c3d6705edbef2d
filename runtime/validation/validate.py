"""The whole validation: plan, run, compare, one policy after the other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from hrm.errors import HrmError
from hrm.predict.machine import Machine
from hrm.predict.rates import Rates
from hrm.spec.hardware import HardwareProfile, load_profile
from hrm.spec.precision import Precision
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.checkpoint.source import WeightSource
from runtime.checkpoint.synthetic import synthetic_checkpoint
from runtime.device import choose_device
from runtime.dtypes import dtype_name, torch_dtype
from runtime.memory.host_buffer import kept_mappings
from runtime.profile_limits import allocator_limit, capped
from runtime.validation.bench import Bench
from runtime.validation.cases import Case, Plan, RatesAt, make_plan
from runtime.validation.check import CheckedRun, check_case
from runtime.validation.facts import is_emulated, machine_facts
from runtime.validation.options import DEFAULT_MODEL, ValidateOptions
from runtime.validation.report import NotRun, RunCheck, ValidationReport
from runtime.validation.workloads import search_workload

Update = Callable[[int, int], None]
Progress = Callable[[str], AbstractContextManager[Update]]
Tell = Callable[[RunCheck | NotRun], None]


@dataclass
class Outcome:
    """Results so far; the timelines of the runs predicted worst and best are kept."""

    runs: list[RunCheck] = field(default_factory=list)
    failed: list[NotRun] = field(default_factory=list)
    worst: CheckedRun | None = None
    best: CheckedRun | None = None

    def add(self, result: CheckedRun | NotRun) -> None:
        """One more."""
        if isinstance(result, NotRun):
            self.failed.append(result)
            return
        self.runs.append(result.check)
        error = abs(result.check.error)
        if self.worst is None or error > abs(self.worst.check.error):
            self.worst = result
        if self.best is None or error < abs(self.best.check.error):
            self.best = result


@dataclass(frozen=True)
class Validation:
    """The report, and two of its runs with their timelines (None where nothing ran)."""

    report: ValidationReport
    worst: CheckedRun | None
    best: CheckedRun | None


def validate(options: ValidateOptions, progress: Progress, tell: Tell | None = None) -> Validation:
    """Runs the policies that the options ask for; what fails is recorded and the rest goes on.

    progress: opens a bar with a title, told (done, total) after every schedule, then after every policy. tell: is given
    every result as it comes. Interrupted (Ctrl-C), it reports what has run.

    Raises:
        HrmError: a model, profile or policy file that cannot be read, or a device that is not there.
    """
    device = choose_device(options.device)
    model = open_model(options)
    profile, limit = machine_profile(options, device)
    dtype = dtype_name(model.config.dtype)
    machine = Machine(profile, Precision(dtype, dtype, dtype, dtype))
    rates = {c: Rates(model.spec, search_workload(c, options.gen_len), machine) for c in options.context_lens}
    with progress("schedules searched") as update:
        plan = make_plan(options, rates, update)
    outcome = Outcome()
    with progress("policies run") as update, kept_mappings():
        bench = Bench(model, device.type, limit)
        try:
            for result in _run_all(bench, plan, rates, options, update):
                outcome.add(result)
                if tell is not None:
                    tell(result.check if isinstance(result, CheckedRun) else result)
        except KeyboardInterrupt:
            left = plan.cases[len(outcome.runs) + len(outcome.failed) :]
            outcome.failed += [_not_run(case, "interrupted") for case in left]
        bench.forget()
    report = ValidationReport(
        model=model.config.name,
        num_layers=model.config.num_layers,
        dtype=dtype,
        gen_len=options.gen_len,
        machine=machine_facts(profile, device, is_emulated(device, limit)),
        runs=tuple(outcome.runs),
        skipped=plan.skipped,
        failed=tuple(outcome.failed),
    )
    return Validation(report, outcome.worst, outcome.best)


def _run_all(
    bench: Bench, plan: Plan, rates: RatesAt, options: ValidateOptions, update: Update
) -> Iterator[CheckedRun | NotRun]:
    """Results one by one."""
    for done, case in enumerate(plan.cases, 1):
        result = _attempt(bench, case, rates[case.context_len], options)
        yield result
        if isinstance(result, NotRun):
            bench.forget()
        update(done, len(plan.cases))


def _attempt(bench: Bench, case: Case, rates: Rates, options: ValidateOptions) -> CheckedRun | NotRun:
    """The run, or why there is none. What a failed pass holds is freed on leaving."""
    try:
        return check_case(bench, case, rates, options.gen_len, options.passes)
    except (HrmError, RuntimeError, MemoryError, AssertionError) as error:
        full = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return _not_run(case, reason, full)


def _not_run(case: Case, reason: str, out_of_memory: bool = False) -> NotRun:
    return NotRun(
        label=case.label, context_len=case.context_len, reason=reason, policy=case.policy, out_of_memory=out_of_memory
    )


def open_model(options: ValidateOptions) -> WeightSource:
    """The checkpoint, or random weights of the model's shapes.

    Raises:
        CheckpointError, ModelConfigError, UnknownNameError: a model that cannot be opened.
    """
    dtype = None if options.dtype is None else torch_dtype(options.dtype)
    if options.model is not None:
        return Checkpoint.open(options.model, dtype)
    return synthetic_checkpoint(options.synthetic or DEFAULT_MODEL, options.layers, 0, dtype)


def machine_profile(options: ValidateOptions, device: torch.device) -> tuple[HardwareProfile, float | None]:
    """The profile with no more memory than the options allow, and the limit to set on the GPU's allocator.

    Without a limit in the options, a profile of a smaller card than the one at hand limits it. Disks are left out: the
    runtime does not read weights while it runs.

    Raises:
        ProfileError, UnknownNameError: a profile that cannot be read.
    """
    profile = load_profile(options.profile).model_copy(update={"disk": None})
    profile = capped(profile, options.gpu_memory_limit, options.cpu_memory_limit)
    usable = profile.gpu.memory_usable.value
    if device.type == "cuda" and is_emulated(device, usable):
        return profile, allocator_limit(usable) if options.gpu_memory_limit is None else options.gpu_memory_limit
    return profile, None

"""One policy: runs it, simulates the very slices that ran, and sets both side by side."""

from dataclasses import dataclass, replace

from hrm.predict.closed_form import predict
from hrm.predict.rates import Rates
from hrm.predict.simulate import Simulator
from hrm.predict.timeline import Timeline
from hrm.schedule.slice import PassSlice
from runtime.validation.bench import Bench
from runtime.validation.cases import Case, with_memory
from runtime.validation.explain import explain, kind_table, queue_table
from runtime.validation.measure import Measured, measure
from runtime.validation.memory_check import cpu_memory_check, gpu_memory_check
from runtime.validation.report import RunCheck
from runtime.validation.workloads import RunShape, run_shape

ROOMY = 1e3  # times the memory: bytes are wanted whether they fit or not


@dataclass(frozen=True)
class CheckedRun:
    """A run's numbers and both timelines of its median pass."""

    check: RunCheck
    predicted: Timeline
    measured: Timeline


def check_case(bench: Bench, case: Case, rates: Rates, gen_len: int, passes: int) -> CheckedRun:
    """Measures, then predicts.

    Raises:
        HrmError: see `measure`.
    """
    shape = run_shape(case.policy, case.context_len, gen_len, passes)
    return compare_run(case, rates, shape, measure(bench, case, shape))


def compare_run(case: Case, rates: Rates, shape: RunShape, measured: Measured) -> CheckedRun:
    """The prediction for what was measured, with the lengths that were run."""
    policy = case.policy
    own = replace(rates, workload=shape.workload).for_chunk(policy.prefill_chunk_tokens)
    simulator, work = Simulator(own), measured.slice
    predicted = simulator.simulate(policy, work).timeline
    prediction = predict(with_memory(own, ROOMY), policy)
    check = RunCheck(
        label=case.label,
        schedule=policy.schedule,
        context_len=case.context_len,
        policy=policy,
        pass_name=_pass_name(work),
        slice=work,
        decoding=sum(mb.sequences for mb in work.micro_batches),
        pass_seconds=measured.pass_seconds,
        measured_seconds=measured.seconds,
        predicted_seconds=predicted.makespan,
        prefill_measured=None if measured.prefill is None else measured.prefill[0],
        prefill_predicted=None if measured.prefill is None else simulator.pass_seconds(policy, measured.prefill[1]),
        kinds=kind_table(predicted, measured.timeline),
        queues=queue_table(predicted, measured.timeline),
        explanation=explain(predicted, measured.timeline, measured.seconds),
        gpu_memory=gpu_memory_check(prediction, measured.memory),
        cpu_memory=cpu_memory_check(prediction, measured.memory),
        load_seconds=measured.load_seconds,
    )
    return CheckedRun(check, predicted, measured.timeline)


def _pass_name(work: PassSlice) -> str:
    if not any(mb.is_prefill for mb in work.micro_batches):
        return "decode"
    return "mixed" if work.decodes else "prefill"

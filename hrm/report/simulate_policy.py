"""Everything that is simulated for one policy."""

from hrm.errors import PolicyError
from hrm.predict.closed_form import predict
from hrm.predict.gap import explain_gap
from hrm.predict.generation import GenerationRun
from hrm.predict.memory_over_time import memory_over_time
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.report.simulation_report import SimulationResult
from hrm.schedule.build import CacheStats
from hrm.schedule.slice import prefill_slice
from hrm.search.refine import typical_slice
from hrm.spec.policy import Policy


def simulate_policy(
    simulator: Simulator,
    policy: Policy,
    prefill: bool = False,
    cache: CacheStats | None = None,
    run: GenerationRun | None = None,
) -> SimulationResult:
    """A decode pass at the mean context (a mixed one where the policy mixes; the prefill pass on request), and a batch.

    Raises:
        PolicyError: the policy does not fit, or has no pass that only prefills.
    """
    rates = simulator.rates
    prediction = predict(rates, policy)
    if prefill and policy.mixed_prefill:
        raise PolicyError("policy: mixes prefill into its decode passes; leave out --prefill")
    name = "prefill" if prefill or rates.workload.gen_len == 1 else "mixed" if policy.mixed_prefill else "decode"
    work = prefill_slice(policy, rates.workload) if name == "prefill" else typical_slice(rates, policy)
    simulation = simulator.simulate(policy, work, cache if work.decodes else None)
    batch = simulate_throughput(simulator, policy, cache)
    memory = memory_over_time(simulation.timeline, simulation.costs, prediction)
    gap = explain_gap(rates, simulation.timeline)
    before = cache.forecast_seconds if cache is not None and work.decodes else 0.0
    return SimulationResult(policy, name, simulation, gap, batch, memory, run, before)

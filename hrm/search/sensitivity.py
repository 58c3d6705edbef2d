"""What to upgrade: the gain in throughput from 10 % more of each resource."""

from dataclasses import dataclass, replace

from hrm.predict.rates import Rates
from hrm.search.branch import branch_and_bound
from hrm.search.pool import search_pool
from hrm.search.search import SearchResult
from hrm.spec.hardware import HardwareProfile

INCREASE = 1.10

LABELS = {
    "htod": "host-to-device link",
    "dtoh": "device-to-host link",
    "gpu_compute": "GPU compute",
    "gpu_memory_bandwidth": "GPU memory bandwidth",
    "gpu_memory": "GPU memory",
    "cpu_compute": "CPU compute",
    "cpu_memory_bandwidth": "CPU memory bandwidth",
    "cpu_memory": "CPU memory",
    "disk": "disk bandwidth",
    "gpu_to_gpu": "GPU-GPU link",
}


@dataclass(frozen=True)
class Sensitivity:
    """Throughput after re-optimising the policy on a machine with `factor` times one resource."""

    resource: str
    factor: float
    generation_throughput: float
    relative_gain: float


def resources_of(profile: HardwareProfile) -> tuple[str, ...]:
    """Names of the resources that this machine has and that can be scaled."""
    missing = set() if profile.disk else {"disk"}
    missing |= set() if profile.device_count > 1 else {"gpu_to_gpu"}
    return tuple(name for name in LABELS if name not in missing)


def sensitivity(result: SearchResult, factor: float = INCREASE) -> tuple[Sensitivity, ...]:
    """The exact optimum on each machine that has `factor` times one resource, largest gain first.

    The policy is searched again for each, so that a gain that needs another policy is seen too.
    """
    base = result.prediction.generation_throughput
    rows = []
    for resource in resources_of(result.rates.machine.profile):
        throughput = _optimum(scaled_rates(result.rates, resource, factor), result.schedule)
        rows.append(Sensitivity(resource, factor, throughput, throughput / base - 1))
    return tuple(sorted(rows, key=lambda row: -row.relative_gain))


def scaled_rates(rates: Rates, resource: str, factor: float) -> Rates:
    """The same model and workload on a machine with `factor` times one resource."""
    profile = rates.machine.profile.with_scaled(resource, factor)
    return replace(rates, machine=replace(rates.machine, profile=profile))


def _optimum(rates: Rates, schedule: str) -> float:
    state = branch_and_bound(rates, search_pool(rates, schedule))
    return 1.0 / min(value for value, _ in state.best.values())

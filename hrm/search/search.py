"""The policy search: the provably best policy for a model, workload and machine, with its prediction."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hrm.errors import InfeasibleError, SolverError
from hrm.predict.closed_form import predict
from hrm.predict.machine import Machine
from hrm.predict.node import Nodes, single_nodes
from hrm.predict.prediction import Prediction
from hrm.predict.rates import Rates
from hrm.schedule.placement import Placement
from hrm.schedule.registry import AUTO
from hrm.search.batch_lp import solve_nodes
from hrm.search.branch import CellKey, SearchState, branch_and_bound
from hrm.search.enumerate import enumerate_all
from hrm.search.extract import policy_from_solution
from hrm.search.infeasible import explain_infeasible
from hrm.search.milp import solve_milp
from hrm.search.pool import search_pool
from hrm.search.relaxation import node_programs
from hrm.spec.hardware import HardwareProfile
from hrm.spec.model import ModelSpec
from hrm.spec.policy import Policy
from hrm.spec.precision import Precision, choose_precision
from hrm.spec.workload import Workload

MILP_CELLS = 12  # best cells handed to the MILP; branch and bound has proven all others no better
REPEATS = 2  # placements kept per one asked for: a "split" one may have its optimum at another's corner
AGREEMENT = 1e-6  # CBC's own tolerances; the cell it chooses is re-solved to 1e-10


@dataclass(frozen=True)
class Candidate:
    """A policy with its prediction."""

    policy: Policy
    prediction: Prediction


@dataclass(frozen=True)
class SolverReport:
    """How the optimum was proven. `relative_gap` is between the answer and the best bound left."""

    status: str
    seconds: float
    relative_gap: float
    boxes_bounded: int
    cells_solved: int
    milp_cells: int


@dataclass(frozen=True)
class Verification:
    """Agreement of the search with the exhaustive enumeration of every cell."""

    agrees: bool
    enumerated_cells: int
    relative_difference: float


@dataclass(frozen=True)
class SearchResult:
    """The best policy first among `candidates`, each the best of its placement."""

    rates: Rates
    schedule: str
    candidates: tuple[Candidate, ...]
    solver: SolverReport

    @property
    def best(self) -> Candidate:
        """The optimum."""
        return self.candidates[0]

    @property
    def policy(self) -> Policy:
        """The optimal policy."""
        return self.best.policy

    @property
    def prediction(self) -> Prediction:
        """What is predicted for the optimal policy."""
        return self.best.prediction


def make_rates(
    profile: HardwareProfile, model: ModelSpec, workload: Workload, precision: Precision | None = None
) -> Rates:
    """The cost model of one (profile, model, workload); precision as `choose_precision` has it when not given."""
    return Rates(model, workload, Machine(profile, precision or choose_precision(model, profile)))


def search_policy(
    rates: Rates,
    schedule: str = AUTO,
    top: int = 1,
    batch_limit: int | None = None,
    pool: tuple[Placement, ...] | None = None,
) -> SearchResult:
    """The policy with the highest predicted generation throughput that fits in memory, proven optimal.

    Branch and bound over every integer (mu, N) leaves a short list of cells; the MILP over those cells is solved to
    proven optimality. `top` asks for the best policies of that many different placements. `batch_limit`: the largest
    batch size allowed, besides what memory allows. `pool`: only these of the schedule's placements.

    Raises:
        InfeasibleError: nothing fits; says which memory lacks how many bytes and what would help.
        UnknownNameError: an unknown schedule.
        SolverError: a solver fault, or the two solvers disagree.
    """
    started = time.perf_counter()
    pool = search_pool(rates, schedule) if pool is None else pool
    state = branch_and_bound(rates, pool, keep=top if top == 1 else REPEATS * top, batch_limit=batch_limit)
    feasible = [key for key, value in state.values.items() if np.isfinite(value)]
    if not feasible:
        raise InfeasibleError(explain_infeasible(rates, pool))
    short_list = sorted(feasible, key=lambda key: state.values[key])[:MILP_CELLS]
    _confirm_by_milp(state, short_list)
    seconds = time.perf_counter() - started
    report = SolverReport(
        "optimal", seconds, state.relative_gap, state.boxes_bounded, len(state.values), len(short_list)
    )
    ranked = (_candidate(rates, pool, key) for _, key in sorted(state.best.values()) if np.isfinite(state.values[key]))
    return SearchResult(rates, schedule, _distinct(ranked, top), report)


def _confirm_by_milp(state: SearchState, keys: list[CellKey]) -> None:
    """Solves the MILP over `keys` and checks it against the incumbent."""
    groups: dict[int, list[CellKey]] = {}
    for key in keys:
        groups.setdefault(key[0], []).append(key)
    programs = [node_programs(state.rates, state.placements[p], _cell_nodes(ks)) for p, ks in groups.items()]
    chosen = solve_milp(programs)
    key = list(groups.values())[chosen.batch][chosen.index]
    best = state.values[keys[0]]
    for name, value in (("chose a cell of", state.values[key]), ("found an optimum of", chosen.seconds_per_token)):
        if abs(value - best) > AGREEMENT * best:
            raise SolverError(f"the MILP {name} {value!r} s/token where branch and bound found {best!r}")


def _cell_nodes(keys: list[CellKey]) -> Nodes:
    mu, k = np.array([key[1] for key in keys], float), np.array([key[2] for key in keys], float)
    return single_nodes(mu, mu * k)


def _distinct(ranked: Iterator[Candidate], top: int) -> tuple[Candidate, ...]:
    """The first `top` candidates that differ in what they do, not only in what their placement would allow."""
    kept: dict[tuple[object, ...], Candidate] = {}
    for candidate in ranked:
        kept.setdefault(_kind(candidate.policy), candidate)
        if len(kept) == top:
            break
    return tuple(kept.values())


def _kind(policy: Policy) -> tuple[object, ...]:
    """What a policy does: which shares are none, some or all, and how it is batched."""
    shares = (policy.attention_on_gpu, policy.kv_on_gpu, policy.experts_on_gpu)
    return (*(0 if s == 0 else 2 if s == 1 else 1 for s in shares), policy.ffn_batching, policy.mixed_prefill)


def _candidate(rates: Rates, pool: tuple[Placement, ...], key: CellKey) -> Candidate:
    placement, mu, batch = pool[key[0]], key[1], key[1] * key[2]
    solved = solve_nodes([node_programs(rates, placement, _cell_nodes([key]))])[0]
    policy = policy_from_solution(rates, placement, mu, batch, solved.x[0])
    return Candidate(policy, predict(rates, policy))


def verify(
    result: SearchResult, progress: Callable[[int, int], None] | None = None, tolerance: float = 1e-9
) -> Verification:
    """Enumerates every cell and compares its optimum with the search's."""
    found = enumerate_all(result.rates, search_pool(result.rates, result.schedule), progress)
    ours = 1.0 / result.prediction.generation_throughput
    difference = abs(ours - found.seconds_per_token) / found.seconds_per_token
    return Verification(difference <= tolerance, found.num_cells, difference)

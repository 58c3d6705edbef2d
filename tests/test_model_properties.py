"""Properties of the cost model and of the search's bounds, on random small machines, models and workloads."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_instances import Instance, instances

from hrm.errors import InfeasibleError, PolicyError
from hrm.predict.closed_form import page_pool_needed, predict
from hrm.schedule.registry import placement_of
from hrm.search.boxes import Boxes, cells, tightened
from hrm.search.branch import largest_batches, root_boxes, solve_boxes
from hrm.search.enumerate import all_cells
from hrm.search.extract import policy_from_solution
from hrm.search.search import make_rates, search_policy

ROUNDING = 1e-9

# Without shrinking: a failure is shown as it was drawn, instead of minutes later.
fixed = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def best_throughput(instance: Instance) -> float:
    """0 where nothing fits."""
    try:
        return search_policy(instance.rates, instance.schedule).prediction.generation_throughput
    except InfeasibleError:
        return 0.0


def scaled(instance: Instance, resource: str, factor: float) -> Instance:
    rates = instance.rates
    profile = rates.machine.profile.with_scaled(resource, factor)
    return Instance(make_rates(profile, rates.model, rates.workload, rates.machine.precision), instance.schedule)


@pytest.mark.parametrize(
    "resource", ["htod", "dtoh", "gpu_memory", "cpu_memory", "cpu_memory_bandwidth", "cpu_compute"]
)
@settings(fixed, max_examples=15)
@given(instances(), st.floats(1.01, 2.0))
def test_more_of_a_resource_never_lowers_throughput(resource: str, instance: Instance, factor: float):
    """GPU compute and GPU bandwidth are left out: the prefill chunk follows their ratio, and with it its memory."""
    before = best_throughput(instance)
    assert best_throughput(scaled(instance, resource, factor)) >= before * (1 - ROUNDING)


def cells_of(instance: Instance, placement: int, cap: int) -> Boxes:
    parts = list(all_cells((instance.placements[placement],), np.array([cap])))
    joined = [np.concatenate([getattr(p, f) for p in parts]) for f in Boxes.__dataclass_fields__]
    return Boxes(np.full_like(joined[0], placement), *joined[1:])


def random_boxes(instance: Instance, root: Boxes, count: int, seed: int) -> Boxes:
    """The root and `count` boxes inside it."""
    generator = np.random.default_rng(seed)
    mu = np.sort(generator.integers(root.mu_lo[0], root.mu_hi[0] + 1, (count, 2)), axis=1)
    k = np.sort(generator.integers(root.k_lo[0], root.k_hi[0] + 1, (count, 2)), axis=1)
    same = np.ones(count, dtype=np.int64)
    inner = tightened(Boxes(root.placement[0] * same, mu[:, 0], mu[:, 1], k[:, 0], k[:, 1], root.cap[0] * same))
    return Boxes(*(np.concatenate([getattr(b, f) for b in (root, inner)]) for f in Boxes.__dataclass_fields__))


@settings(fixed, max_examples=40)
@given(instances(), st.integers(0, 2**31))
def test_bound_of_a_box_is_below_every_cell_inside(instance: Instance, seed: int):
    """What the search's proof rests on, for about eight boxes of every placement; an infeasible box has no cell."""
    caps = largest_batches(instance.rates, instance.placements)
    roots = root_boxes(instance.placements, caps)
    for i in range(len(roots)):
        root = roots.take(np.array([i]))
        every = cells_of(instance, int(root.placement[0]), int(root.cap[0]))
        exact = solve_boxes(instance.rates, instance.placements, every).value
        boxes = random_boxes(instance, root, 7, seed)
        bounds = solve_boxes(instance.rates, instance.placements, boxes).value
        inside = (every.mu_lo >= boxes.mu_lo[:, None]) & (every.mu_lo <= boxes.mu_hi[:, None])
        inside &= (every.k_lo >= boxes.k_lo[:, None]) & (every.k_lo <= boxes.k_hi[:, None])
        least = np.where(inside, exact, np.inf).min(axis=1)
        assert inside.any(axis=1).all()
        assert (bounds <= least * (1 + ROUNDING)).all()


@settings(fixed, max_examples=60)
@given(instances(), st.data())
def test_prediction_of_a_solved_cell_is_the_value_of_its_linear_program(instance: Instance, data: st.DataObject):
    """The closed form evaluates the policy; the linear program knew only coefficients.

    A policy at a corner (all experts on the GPU, say) is predicted as the simpler placement that it is, which has fewer
    copies: then it may be faster than the cell it was found in, never slower.
    """
    caps = largest_batches(instance.rates, instance.placements)
    assume(caps.any())
    placement = data.draw(st.sampled_from(np.flatnonzero(caps > 0).tolist()))
    every = cells_of(instance, placement, int(caps[placement]))
    index = data.draw(st.integers(0, len(every) - 1))
    cell = every.take(np.array([index]))
    solved = solve_boxes(instance.rates, instance.placements, cell)
    assume(np.isfinite(solved.value[0]))
    policy = policy_from_solution(
        instance.rates, instance.placements[placement], int(cell.mu_lo[0]), int(cell.cap[0]), solved.x[0]
    )
    predicted = 1.0 / predict(instance.rates, policy).generation_throughput
    assert predicted <= solved.value[0] * (1 + ROUNDING)
    if placement_of(policy) == instance.placements[placement]:
        assert predicted >= solved.value[0] * (1 - ROUNDING)


@settings(fixed, max_examples=60)
@given(instances(schedule="auto"), st.integers(0, 2**31))
def test_no_random_policy_beats_the_search(instance: Instance, seed: int):
    """The policy of the best cell, with some of its choices drawn anew: none that fits may be predicted faster."""
    try:
        best = search_policy(instance.rates, instance.schedule, top=3)
    except InfeasibleError:
        return
    generator = np.random.default_rng(seed)
    limit = best.prediction.generation_throughput * (1 + ROUNDING)
    for candidate in best.candidates:
        for _ in range(20):
            assert throughput_of_a_variant(instance, candidate.policy, generator) <= limit


def throughput_of_a_variant(instance: Instance, policy, generator: np.random.Generator) -> float:
    """0 for a policy that contradicts itself, or that does not fit."""
    fields = policy.model_dump()
    for name in ("weights_on_gpu", "dense_weights_on_gpu", "experts_on_gpu", "weights_on_disk"):
        if generator.random() < 0.4 and fields[name] < 1:
            fields[name] = float(np.clip(fields[name] + generator.normal(0, 0.1), 0, 1))
    if policy.attention_place in ("hybrid", "split"):
        fields["attention_on_gpu"] = fields["kv_on_gpu"] = float(generator.random())
    mu, k = int(generator.integers(1, 12)), int(generator.integers(1, 5))
    if generator.random() < 0.6:
        ffn = mu * k if policy.ffn_batching == "batch" else mu
        fields |= {"micro_batch_size": mu, "batch_size": mu * k, "ffn_batch_size": ffn}
    try:
        changed = type(policy)(**fields)
        pool = page_pool_needed(instance.rates, changed) * (1 + 1e-12)
        changed = changed.model_copy(update={"page_pool_bytes": pool})
        return predict(instance.rates, changed).generation_throughput
    except (ValueError, PolicyError):
        return 0.0


@settings(fixed, max_examples=40)
@given(instances())
def test_one_sequence_more_than_the_largest_batch_does_not_fit(instance: Instance):
    """At micro-batches of one sequence, which need the least memory."""
    caps = largest_batches(instance.rates, instance.placements)
    index = np.flatnonzero(caps > 0)
    assume(len(index))
    beyond = cells(index, np.ones(len(index), dtype=np.int64), caps[index] + 1)
    assert np.isinf(solve_boxes(instance.rates, instance.placements, beyond).value).all()

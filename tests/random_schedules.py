"""Random policies and passes for random machines and models, as far apart as the schedules allow."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from random_instances import models, profiles, workload

from hrm.predict.forms import NUM_TERMS, Term, evaluate
from hrm.predict.memory import pool_need
from hrm.predict.node import single_nodes
from hrm.predict.rates import Rates
from hrm.roofline.sizes import Sizes
from hrm.schedule.build import build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placements, schedule_names
from hrm.schedule.slice import PassSlice, decode_slice, mixed_slice, prefill_slice
from hrm.search.search import make_rates
from hrm.spec.policy import Policy
from hrm.spec.precision import Precision


@dataclass(frozen=True)
class Case:
    """A policy and one pass under it; memory is not checked, so that every combination occurs."""

    rates: Rates
    policy: Policy
    slice: PassSlice

    def graph(self) -> TaskGraph:
        return build_graph(self.rates.sizes, self.slice, self.policy)


@st.composite
def machines(draw: st.DrawFn, most_layers: int = 4) -> Rates:
    model, gen_len, prompt = draw(models()), draw(st.integers(1, 8)), draw(st.floats(4, 60))
    layers = (model.layers * most_layers)[: draw(st.integers(1, most_layers))]
    model = replace(model, layers=layers)
    precision = Precision("bf16", draw(st.sampled_from(["bf16", "int8"])), "bf16", "bf16")
    sizes = Sizes(model, precision)
    profile = draw(profiles(sizes, sizes.kv_bytes_per_sequence(prompt + gen_len)))
    return make_rates(profile, model, workload(prompt, gen_len), precision)


def shares(low: float, high: float) -> st.SearchStrategy[float]:
    """Often the ends."""
    return st.sampled_from([low, high]) | st.integers(1, 7).map(lambda k: low + k / 8 * (high - low))


def attention_shares(draw: st.DrawFn, placement: Placement) -> tuple[float, float]:
    fixed = {"cpu": (0.0, 0.0), "resident": (1.0, 1.0)}
    if placement.attention in fixed:
        return fixed[placement.attention]
    if placement.attention == "streamed":
        return 1.0, draw(shares(0.0, 0.9))
    attention = draw(shares(0.0, 1.0))
    return attention, attention if placement.attention == "hybrid" else draw(shares(0.0, attention))


def least_pool(rates: Rates, placement: Placement, batch_size: int, weights_on_gpu: float) -> float:
    terms = np.zeros((1, NUM_TERMS))
    terms[0, Term.ONE], terms[0, Term.WEIGHTS], terms[0, Term.EXPERTS] = 1.0, weights_on_gpu, 1.0
    need = pool_need(rates, placement, single_nodes(np.array([1.0]), np.array([float(batch_size)])))
    return float(evaluate(need, terms)[0])


@st.composite
def policies(draw: st.DrawFn, rates: Rates, schedule: str | None = None) -> Policy:
    placement = draw(st.sampled_from(placements(schedule or draw(st.sampled_from(schedule_names())))))
    mu, n = draw(st.integers(1, 5)), 1 if placement.single_micro_batch else draw(st.integers(1, 6))
    attention, kv = attention_shares(draw, placement)
    experts = draw(shares(0.0, 1.0)) if placement.experts_on_cpu else 1.0
    weights = draw(shares(0.0, experts))
    disk = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])) * (1 - weights) if rates.machine.profile.disk else 0.0
    return Policy(
        schedule=placement.schedule,
        batch_size=mu * n,
        micro_batch_size=mu,
        ffn_batch_size=mu * n if placement.ffn == "batch" else mu,
        attention_on_gpu=attention,
        experts_on_gpu=experts,
        weights_on_gpu=weights,
        kv_on_gpu=kv,
        dense_weights_on_gpu=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])),
        weights_on_disk=disk,
        attention_place=placement.attention,
        ffn_batching=placement.ffn,
        mixed_prefill=placement.mixed_prefill,
        prefill_chunk_tokens=draw(st.sampled_from([16, 64, 256])),
        page_pool_bytes=draw(st.floats(1.0, 5.0)) * least_pool(rates, placement, mu * n, weights),
        tensor_parallel_size=rates.machine.tensor_parallel_size,
        hidden_states_by=draw(st.sampled_from(["copy_engine", "kernel"])),
        host_weights=draw(st.sampled_from(["page_locked", "page_locked", "pageable"])),
    )


def passes(policy: Policy, rates: Rates) -> st.SearchStrategy[PassSlice]:
    """Decode or prefill, or both where the policy mixes them (its ring may hold too little for prefill alone)."""
    decode = decode_slice(policy, rates.workload.mean_context_len)
    other = mixed_slice if policy.mixed_prefill else prefill_slice
    return st.sampled_from([decode, other(policy, rates.workload)])


@st.composite
def cases(draw: st.DrawFn, schedule: str | None = None, most_layers: int = 4) -> Case:
    rates = draw(machines(most_layers))
    policy = draw(policies(rates, schedule))
    return Case(rates, policy, draw(passes(policy, rates)))

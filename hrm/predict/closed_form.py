"""The closed form: each kind of pass takes as long as its schedule's busiest (chain of) resource."""

import numpy as np

from hrm.errors import PolicyError
from hrm.predict.combine import pass_rows
from hrm.predict.forms import NUM_TERMS, Form, Term, evaluate
from hrm.predict.memory import cpu_parts, disk_parts, gpu_parts, pool_need
from hrm.predict.node import Nodes, single_nodes
from hrm.predict.prediction import MemoryPrediction, PassPrediction, Prediction
from hrm.predict.rates import Rates
from hrm.predict.shapes import PassShape, generation_passes
from hrm.predict.work import PassWork, pass_work
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placement_of
from hrm.spec.policy import Policy

BINDING_TOLERANCE = 1e-6
CAPACITY_TOLERANCE = 2e-9  # the search's programs allow half of it, and add up in another order


def predict(rates: Rates, policy: Policy) -> Prediction:
    """Closed-form prediction of one policy: each pass takes as long as its schedule's busiest (chain of) resource.

    Leaves out pipeline fill, drain and bubbles, which the simulator adds.

    Raises:
        PolicyError: the policy does not fit in memory (which, and by how much), or was made for other GPUs.
    """
    if policy.tensor_parallel_size != rates.machine.tensor_parallel_size:
        raise PolicyError(
            f"policy: tensor_parallel_size {policy.tensor_parallel_size} but {rates.machine.profile.name} has "
            f"{rates.machine.tensor_parallel_size} GPU(s)"
        )
    rates = rates.for_chunk(policy.prefill_chunk_tokens)
    placement, terms, nodes = placement_of(policy), policy_terms(policy), _policy_nodes(policy)
    _check_micro_batches(placement, policy)
    needed = page_pool_needed(rates, policy)
    if needed - policy.page_pool_bytes > CAPACITY_TOLERANCE * rates.machine.gpu_memory_bytes:
        raise PolicyError(
            f"policy: page_pool_bytes {policy.page_pool_bytes:,.0f} is below the {needed:,.0f} bytes that schedule "
            f"{policy.schedule} needs to stream {1 - policy.weights_on_gpu:.1%} of the expert weights"
        )
    gpu = {phase: _sizes(parts, terms) for phase, parts in gpu_parts(rates, placement, nodes).items()}
    peak = max(gpu.values(), key=lambda parts: sum(parts.values()))
    machine = rates.machine
    prediction = Prediction(
        policy.batch_size,
        rates.workload.gen_len,
        tuple(
            _predict_pass(rates, placement, shape, policy)
            for shape in generation_passes(rates.workload, policy.mixed_prefill)
        ),
        MemoryPrediction(peak, machine.gpu_memory_bytes),
        MemoryPrediction(_sizes(cpu_parts(rates, placement, nodes), terms), machine.cpu_memory_bytes),
        MemoryPrediction(_sizes(disk_parts(rates, nodes), terms), machine.disk_bytes),
    )
    _check_fits(prediction)
    return prediction


def page_pool_needed(rates: Rates, policy: Policy) -> float:
    """Bytes of page pool that the policy's schedule needs at the least."""
    rates = rates.for_chunk(policy.prefill_chunk_tokens)
    need = pool_need(rates, placement_of(policy), _policy_nodes(policy))
    return float(evaluate(need, policy_terms(policy))[0])


def _policy_nodes(policy: Policy) -> Nodes:
    return single_nodes(np.array([float(policy.micro_batch_size)]), np.array([float(policy.batch_size)]))


def _check_micro_batches(placement: Placement, policy: Policy) -> None:
    fewest, most, n = placement.min_micro_batches, placement.max_micro_batches, policy.num_micro_batches
    if n < fewest:
        raise PolicyError(
            f"policy: micro_batch_size {policy.micro_batch_size} makes {n} micro-batch of batch_size "
            f"{policy.batch_size}; CPU and GPU work overlap from {fewest} micro-batches on"
        )
    if most is not None and n > most:
        raise PolicyError(
            f"policy: schedule {policy.schedule} runs one micro-batch; set micro_batch_size to batch_size "
            f"{policy.batch_size}"
        )


def policy_terms(policy: Policy) -> Form:
    """The values of every term of a form under `policy`, shape [1, NUM_TERMS]."""
    n = float(policy.batch_size)
    terms = np.zeros((1, NUM_TERMS))
    terms[0, Term.ONE], terms[0, Term.N] = 1.0, n
    terms[0, Term.N_ATTENTION], terms[0, Term.N_KV] = n * policy.attention_on_gpu, n * policy.kv_on_gpu
    terms[0, Term.WEIGHTS], terms[0, Term.EXPERTS] = policy.weights_on_gpu, policy.expert_work_on_gpu
    terms[0, Term.N_EXPERTS] = n * policy.expert_work_on_gpu
    terms[0, Term.DENSE], terms[0, Term.DISK] = policy.dense_weights_on_gpu, policy.weights_on_disk
    terms[0, Term.POOL] = policy.page_pool_bytes
    return terms


def _sizes(parts: dict[str, Form], terms: Form) -> dict[str, float]:
    return {name: float(evaluate(part, terms)[0]) for name, part in parts.items()}


def _predict_pass(rates: Rates, placement: Placement, shape: PassShape, policy: Policy) -> PassPrediction:
    nodes, terms = _policy_nodes(policy), policy_terms(policy)
    work = pass_work(rates, placement, shape, nodes)
    rows = [(n, float(evaluate(f, terms)[0])) for n, f in pass_rows(rates, placement, shape, work, nodes)]
    seconds = max(value for _, value in rows)
    binding = dict.fromkeys(name for name, value in rows if value >= seconds * (1 - BINDING_TOLERANCE))
    return PassPrediction(shape.name, shape.count, seconds, _busy(work, terms), tuple(binding))


def _busy(work: PassWork, terms: Form) -> dict[str, float]:
    def seconds(*forms: Form) -> float:
        return max(float(evaluate(f, terms)[0]) for f in forms)

    return {
        "gpu": seconds(work.gpu_dense) + seconds(*work.gpu_experts),
        "cpu": seconds(work.cpu_attention) + seconds(*work.cpu_experts),
        "htod": seconds(work.htod),
        "dtoh": seconds(work.dtoh),
        "disk": seconds(work.disk),
        "gpu_to_gpu": seconds(work.link),
        "cpu_memory_bandwidth": seconds(work.dram),
    }


def _check_fits(prediction: Prediction) -> None:
    """Refuses what exceeds a memory, naming the one that is exceeded most."""
    memories = {"GPU": prediction.gpu_memory, "CPU": prediction.cpu_memory, "disk": prediction.disk}
    over = {name: m.total_bytes - m.usable_bytes for name, m in memories.items()}
    name = max(over, key=lambda n: over[n])
    memory = memories[name]
    if over[name] > CAPACITY_TOLERANCE * max(memory.usable_bytes, 1.0):
        largest = max(memory.parts, key=lambda part: memory.parts[part])
        raise PolicyError(
            f"policy: needs {over[name] / 2**30:.3f} GiB more {name} memory than the {memory.usable_bytes / 2**30:.2f} "
            f"GiB usable; its largest part is {largest} ({memory.parts[largest] / 2**30:.2f} GiB)"
        )

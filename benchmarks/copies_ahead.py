"""How many experts a link copies in a layer's time: what `copies` in expert_cache_quality.py is on real machines.

python benchmarks/copies_ahead.py

A layer's time: of a decode pass with all experts on the GPU, simulated by the roofs. Where a profile states no launch
times, they are left out, and the real number is larger. Small experts: of many, a copy is a smaller share of a layer.
"""

from machine import this_machine

from hrm.predict.rates import Rates
from hrm.predict.simulate import Simulator
from hrm.schedule.slice import decode_slice
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.workload import make_workload

MODELS = ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b")
MACHINES = ("t4", "rtx4090", "h200-16gib")
BATCHES = (4, 16)
CONTEXT = 96


def resident(batch: int) -> Policy:
    """Everything on the GPU."""
    return Policy(
        schedule="expert_cache", batch_size=batch, micro_batch_size=batch, ffn_batch_size=batch, attention_on_gpu=1.0,
        experts_on_gpu=1.0, weights_on_gpu=1.0, kv_on_gpu=1.0, dense_weights_on_gpu=1.0, weights_on_disk=0.0,
        attention_place="resident", ffn_batching="micro_batch", mixed_prefill=False, prefill_chunk_tokens=1024,
        page_pool_bytes=0.0, tensor_parallel_size=1, hidden_states_by="kernel", expert_cache="predictive",
    )  # fmt: skip


def copies_ahead(rates: Rates, batch: int) -> float:
    """Copies of one expert in the time of one layer."""
    policy, model = resident(batch), rates.model
    seconds = Simulator(rates).pass_seconds(policy, decode_slice(policy, CONTEXT)) / len(model.layers)
    experts = sum(layer.ffn.num_experts for layer in model.layers)
    copy = rates.sizes.expert_bytes / experts / rates.machine.link_bytes_per_s("htod")
    return seconds / copy


def main() -> None:
    """The table."""
    print(this_machine())
    print(f"| model (experts per layer) | {' | '.join(f'{m}, batch {b}' for m in MACHINES for b in BATCHES)} |")
    print("|---|" + "---:|" * (len(MACHINES) * len(BATCHES)))
    for name in MODELS:
        model = load_model(name)
        workload = make_workload(64, CONTEXT, name="decode", where="copies_ahead")
        rates = [make_rates(load_profile(machine), model, workload) for machine in MACHINES]
        cells = [f"{copies_ahead(each, batch):.1f}" for each in rates for batch in BATCHES]
        print(f"| {name} ({model.layers[-1].ffn.num_experts}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

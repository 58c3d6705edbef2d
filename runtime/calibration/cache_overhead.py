"""What an expert cache costs beside bytes and products: launching graphs, and deciding at the gate.

T tokens, H hidden_size.
"""

from collections import deque
from collections.abc import Callable

import torch

from hrm.spec.policy import Policy
from runtime.calibration.overhead import CHAIN_LAYERS, tiny_layer
from runtime.calibration.plan import Plan
from runtime.calibration.results import Spread, spread
from runtime.calibration.shapes import Shapes
from runtime.calibration.timing import time_calls
from runtime.checkpoint.synthetic import SyntheticCheckpoint, synthetic_checkpoint
from runtime.decode_steps import DecodeSteps
from runtime.engine import Engine
from runtime.graphs import CallGraphs
from runtime.models.mixtral import FAMILY
from runtime.requests.request import Request, Sampling

SEQUENCES = 16  # that decode together, as small batches do for which a cache is worth it
LAYERS, PASSES, WARM = 16, 20, 4
QUICK_PASSES = 7


def measure_graph_overhead(plan: Plan, dtype: torch.dtype, device: torch.device) -> Spread | None:
    """Seconds per task of the chain of `measure_gpu_overhead`, each task a graph; None where there are no graphs."""
    if device.type != "cuda":
        return None
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        timing = time_calls(_chain(dtype, device), device, plan.effort, 1)
    return spread(tuple(seconds / (2 * CHAIN_LAYERS) for seconds in timing.seconds))


def _chain(dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    layer = tiny_layer(dtype, device)
    steps = DecodeSteps(layer.config, FAMILY, 1, device, CallGraphs())

    def call() -> None:
        for _ in range(CHAIN_LAYERS):
            steps.pre(0, layer.weights, layer.hidden, None, layer.rotation)
            steps.post(0, layer.weights)

    for _ in range(2):
        call()
    return call


def measure_gate_overhead(plan: Plan, dtype: torch.dtype, device: torch.device) -> Spread | None:
    """Seconds of a decision, pass by pass. A model with as many experts per layer and token as the plan's, but tiny
    ones, decodes with half of them in slots of a predictive cache and half of what is missed on the CPU. None for a
    dense model.
    """
    if plan.shapes.num_experts < 2:
        return None
    passes = QUICK_PASSES if plan.quick else PASSES
    seconds: list[float] = []
    with Engine(_tiny_model(plan.shapes, dtype), _policy(), device=str(device)) as engine:
        assert engine.memory.slots is not None
        engine.runner.timed, deciding = False, engine.memory.slots.deciding
        sampling = Sampling(passes, ignore_eos=True)
        waiting = deque(Request(str(i), (3 + i, 4 + i), sampling) for i in range(SEQUENCES))
        engine.make_room(list(waiting))
        while waiting or engine.table.active.any():
            before, count = deciding.seconds, deciding.count
            engine.step(waiting)
            seconds.append((deciding.seconds - before) / (deciding.count - count))
    return spread(tuple(seconds[WARM:]))


def _policy() -> Policy:
    return Policy(
        schedule="expert_cache", batch_size=SEQUENCES, micro_batch_size=SEQUENCES, ffn_batch_size=SEQUENCES,
        attention_on_gpu=1.0, experts_on_gpu=0.5, weights_on_gpu=0.5, kv_on_gpu=1.0, dense_weights_on_gpu=1.0,
        weights_on_disk=0.0, attention_place="resident", ffn_batching="micro_batch", mixed_prefill=False,
        prefill_chunk_tokens=1024, page_pool_bytes=0.0, tensor_parallel_size=1, hidden_states_by="kernel",
        expert_cache="predictive",
    )  # fmt: skip


def _tiny_model(shapes: Shapes, dtype: torch.dtype) -> SyntheticCheckpoint:
    """Half of its experts hold at least those of one token."""
    config = {
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "moe_intermediate_size": 32,
        "num_experts": shapes.num_experts, "num_experts_per_tok": min(shapes.top_k, shapes.num_experts),
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 128, "tie_word_embeddings": False,
        "hidden_act": "silu",
    }  # fmt: skip
    return synthetic_checkpoint(config, dtype=dtype)

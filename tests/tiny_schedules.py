"""A tiny Mixtral-like model and one policy per way of running it, for tests that look at whole task graphs."""

from hrm.roofline.sizes import Sizes
from hrm.schedule.build import build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.slice import PassSlice, decode_slice, mixed_slice, prefill_slice
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec
from hrm.spec.policy import Policy
from hrm.spec.precision import Precision
from hrm.spec.workload import Workload

LAYER = LayerSpec(AttentionSpec(4, 2, 16, 16), FfnSpec(8, 2, 128, 0, True), 128)
MODEL = ModelSpec("tiny", "mixtral", 64, 256, (LAYER,) * 3, False, "bf16", None, None, 64, final_norm_parameters=64)
SIZES = Sizes(MODEL, Precision("bf16", "bf16", "bf16", "bf16"))
LAYER_BYTES = SIZES.expert_bytes / 3
WORKLOAD = Workload("tiny", 8.0, 10, 4, False, 70.0)


def policy(schedule: str, attention_place: str = "cpu", micro_batches: int = 3, **changes: object) -> Policy:
    """Micro-batches of 4 sequences, half of the experts on the GPU, a ring of 1.5 layers' streamed weights."""
    attention, kv = {"cpu": (0.0, 0.0), "resident": (1.0, 1.0), "streamed": (1.0, 0.5), "hybrid": (0.5, 0.5),
                     "split": (0.5, 0.25)}[attention_place]  # fmt: skip
    ffn = "batch" if schedule == "module_batched" else changes.pop("ffn_batching", "micro_batch")
    n = 4 * micro_batches
    values: dict[str, object] = dict(  # noqa: C408
        schedule=schedule, batch_size=n, micro_batch_size=4, ffn_batch_size=n if ffn == "batch" else 4,
        ffn_batching=ffn, attention_place=attention_place, attention_on_gpu=attention, kv_on_gpu=kv,
        experts_on_gpu=1.0, weights_on_gpu=0.5, dense_weights_on_gpu=1.0, weights_on_disk=0.0, mixed_prefill=False,
        prefill_chunk_tokens=32, page_pool_bytes=0.75 * LAYER_BYTES, tensor_parallel_size=1,
    )  # fmt: skip
    return Policy(**(values | changes))


NAMED = {
    "cgopipe": policy("cgopipe"),
    "flexgen": policy("flexgen", "streamed"),
    "flexgen_cpu_attention": policy("flexgen_cpu_attention"),
    "fastdecode": policy("fastdecode"),
    "layer_streaming": policy("layer_streaming", "resident", 1),
    "module_batched": policy("module_batched", "split"),
    "expert_cache": policy("expert_cache", "resident", 1),
}
MIXED = {"mixed_prefill": True}
ON_CPU = {"experts_on_gpu": 0.75}
VARIANTS = NAMED | {
    "cgopipe_streamed_attention": policy("cgopipe", "streamed"),
    "cgopipe_experts_on_cpu": policy("cgopipe", **ON_CPU),
    "cgopipe_all_experts_on_cpu": policy("cgopipe", experts_on_gpu=0.0, weights_on_gpu=0.0),
    "cgopipe_dense_streamed": policy("cgopipe", dense_weights_on_gpu=0.25),
    "cgopipe_kernel": policy("cgopipe", hidden_states_by="kernel"),
    "cgopipe_pageable": policy("cgopipe", "streamed", host_weights="pageable"),
    "cgopipe_within_decode": policy("cgopipe", weight_prefetch="within_decode"),
    "cgopipe_disk": policy("cgopipe", weights_on_disk=0.25),
    "cgopipe_disk_experts_on_cpu": policy("cgopipe", **ON_CPU, weights_on_disk=0.5),
    "cgopipe_disk_all_experts_on_cpu": policy("cgopipe", experts_on_gpu=0.0, weights_on_gpu=0.0, weights_on_disk=0.5),
    "cgopipe_two_gpus": policy("cgopipe", **ON_CPU, tensor_parallel_size=2, dense_weights_on_gpu=0.5),
    "cgopipe_one_micro_batch": policy("cgopipe", "streamed", 1),
    "flexgen_resident": policy("flexgen", "resident"),
    "flexgen_everything_slow": policy("flexgen", "streamed", host_weights="pageable", weights_on_disk=0.5),
    "layer_streaming_two_gpus": policy("layer_streaming", "resident", 1, tensor_parallel_size=2),
    "module_batched_cpu": policy("module_batched"),
    "module_batched_streamed": policy("module_batched", "streamed"),
    "module_batched_hybrid": policy("module_batched", "hybrid"),
    "module_batched_long_ring": policy("module_batched", page_pool_bytes=4.0 * LAYER_BYTES),
    "module_batched_pageable": policy("module_batched", host_weights="pageable", weights_on_disk=0.5),
    "expert_cache_on_cpu": policy("expert_cache", "resident", 1, **ON_CPU),
    "expert_cache_disk": policy("expert_cache", "resident", 1, **ON_CPU, weights_on_disk=0.5),
    "expert_cache_lru": policy("expert_cache", "resident", 1, expert_cache="lru", page_pool_bytes=0.0),
    "expert_cache_predictive": policy(
        "expert_cache",
        "resident",
        1,
        expert_cache="predictive",
        page_pool_bytes=0.0,
        hidden_states_by="kernel",
        dense_weights_on_gpu=0.5,
    ),
    "expert_cache_predictive_on_cpu": policy(
        "expert_cache",
        "resident",
        1,
        expert_cache="predictive",
        page_pool_bytes=0.0,
        hidden_states_by="kernel",
        weights_on_gpu=0.25,
        experts_on_gpu=0.5,
    ),
    "expert_cache_lru_on_cpu": policy(
        "expert_cache", "resident", 1, expert_cache="lru", page_pool_bytes=0.0, experts_on_gpu=0.0
    ),
    "auto_mixed_split": policy("auto", "split", **MIXED, hidden_states_by="kernel"),
    "auto_mixed_experts_on_cpu": policy("auto", "hybrid", **MIXED, **ON_CPU, dense_weights_on_gpu=0.0),
    "auto_kernel_experts_on_cpu": policy("auto", **ON_CPU, hidden_states_by="kernel"),
    "auto_kernel_batch_experts_on_cpu": policy("auto", ffn_batching="batch", **ON_CPU, hidden_states_by="kernel"),
    "auto_mixed_batch": policy("auto", "resident", ffn_batching="batch", **MIXED, **ON_CPU),
    "auto_mixed_batch_two_gpus": policy(
        "auto", "split", ffn_batching="batch", **MIXED, **ON_CPU, tensor_parallel_size=2, weights_on_disk=0.5
    ),
}
SLICES = ("decode", "prefill", "mixed")


def pass_slice(chosen: Policy, name: str) -> PassSlice:
    if name == "decode":
        return decode_slice(chosen, 10.0)
    return prefill_slice(chosen, WORKLOAD) if name == "prefill" else mixed_slice(chosen, WORKLOAD)


def tiny_graph(chosen: Policy, name: str = "decode") -> TaskGraph:
    return build_graph(SIZES, pass_slice(chosen, name), chosen)

"""Policies for tiny models: every schedule, with attention and experts on either side or split."""

from hrm.spec.policy import Policy, attention_place_of

_BASE = {
    "attention_on_gpu": 0.0,
    "experts_on_gpu": 1.0,
    "weights_on_gpu": 0.0,
    "kv_on_gpu": 0.0,
    "dense_weights_on_gpu": 1.0,
    "weights_on_disk": 0.0,
    "mixed_prefill": False,
    "prefill_chunk_tokens": 24,
    "page_pool_bytes": 1e9,
    "tensor_parallel_size": 1,
}


def make_policy(schedule: str, micro_batch_size: int, num_micro_batches: int, **changes: object) -> Policy:
    """A policy with what follows from the rest filled in."""
    fields = _BASE | {"schedule": schedule, "ffn_batching": "micro_batch"} | changes
    batch = micro_batch_size * num_micro_batches
    place = attention_place_of(fields["attention_on_gpu"], fields["kv_on_gpu"], fields.pop("attention_place", ""))
    ffn = batch if fields["ffn_batching"] == "batch" else micro_batch_size
    return Policy.model_validate(
        fields
        | {
            "batch_size": batch,
            "micro_batch_size": micro_batch_size,
            "ffn_batch_size": ffn,
            "attention_place": place,
        }
    )


BATCH = {"ffn_batching": "batch"}
RESIDENT = {"attention_on_gpu": 1.0, "kv_on_gpu": 1.0}
STREAMED = {"attention_on_gpu": 1.0, "attention_place": "streamed"}
HYBRID = {"attention_on_gpu": 0.5, "kv_on_gpu": 0.5}
SPLIT = {"attention_on_gpu": 0.75, "kv_on_gpu": 0.25, "attention_place": "split"}
CPU_EXPERTS = {"experts_on_gpu": 0.5}
KERNEL = {"hidden_states_by": "kernel", "attention_lookahead": 4}

POLICIES: dict[str, Policy] = {
    "cgopipe": make_policy("cgopipe", 3, 3),
    "cgopipe, part resident": make_policy("cgopipe", 3, 3, weights_on_gpu=0.3, dense_weights_on_gpu=0.5),
    "cgopipe, kernel": make_policy("cgopipe", 2, 4, **KERNEL),
    "cgopipe, GPU attention": make_policy("cgopipe", 3, 3, **STREAMED),
    "cgopipe, experts on both": make_policy("cgopipe", 3, 3, **CPU_EXPERTS),
    "cgopipe, experts on the CPU": make_policy("cgopipe", 3, 3, experts_on_gpu=0.0),
    "cgopipe, nothing resident": make_policy("cgopipe", 3, 3, dense_weights_on_gpu=0.0),
    "cgopipe, pageable": make_policy("cgopipe", 3, 3, host_weights="pageable", **STREAMED),
    "cgopipe, within decode": make_policy("cgopipe", 3, 3, weight_prefetch="within_decode"),
    "flexgen": make_policy("flexgen", 3, 3, **STREAMED),
    "flexgen, part resident": make_policy(
        "flexgen", 3, 3, attention_on_gpu=1.0, kv_on_gpu=0.4, attention_place="streamed", weights_on_gpu=0.2
    ),
    "flexgen, resident": make_policy("flexgen", 3, 3, **RESIDENT),
    "flexgen, pageable": make_policy("flexgen", 3, 3, host_weights="pageable", **STREAMED),
    "flexgen_cpu_attention": make_policy("flexgen_cpu_attention", 3, 3),
    "fastdecode": make_policy("fastdecode", 3, 3),
    "layer_streaming": make_policy("layer_streaming", 8, 1, **RESIDENT),
    "layer_streaming, all resident": make_policy("layer_streaming", 8, 1, weights_on_gpu=1.0, **RESIDENT),
    "expert_cache": make_policy("expert_cache", 4, 1, weights_on_gpu=0.25, **RESIDENT),
    "expert_cache, misses on the CPU": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.25, experts_on_gpu=0.5, **RESIDENT
    ),
    "expert cache, lru": make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lru", **RESIDENT),
    "expert cache, lfu": make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lfu", **RESIDENT),
    "expert cache, static": make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="static", **RESIDENT),
    "expert cache, predictive": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="predictive", **RESIDENT, **KERNEL
    ),
    "expert cache, lru, misses on both": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lru", experts_on_gpu=0.5, **RESIDENT
    ),
    "expert cache, lru, misses on the CPU": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="lru", experts_on_gpu=0.0, **RESIDENT, **KERNEL
    ),
    "expert cache, predictive, misses on both": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache="predictive", experts_on_gpu=0.5, **RESIDENT, **KERNEL
    ),
    "expert cache, predictive, misses on the CPU": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.25, expert_cache="predictive", experts_on_gpu=0.0, **RESIDENT
    ),
    "expert cache, all resident": make_policy(
        "expert_cache", 4, 1, weights_on_gpu=1.0, expert_cache="predictive", **RESIDENT
    ),
    "module_batched": make_policy("module_batched", 3, 3, **BATCH),
    "module_batched, streamed": make_policy("module_batched", 3, 3, **BATCH, **STREAMED),
    "module_batched, hybrid": make_policy("module_batched", 4, 2, **BATCH, **HYBRID, weights_on_gpu=0.25),
    "module_batched, split": make_policy("module_batched", 4, 2, **BATCH, **SPLIT),
    "module_batched, small ring": make_policy("module_batched", 3, 3, **BATCH, page_pool_bytes=8e4),
    "auto, mixed, small ring": make_policy(
        "auto", 3, 3, mixed_prefill=True, attention_place="hybrid", page_pool_bytes=8e4
    ),
    "auto, mixed, batch, small ring": make_policy(
        "auto", 3, 3, **BATCH, **KERNEL, mixed_prefill=True, attention_place="hybrid", page_pool_bytes=8e4
    ),
    "auto, mixed": make_policy("auto", 3, 3, **KERNEL, mixed_prefill=True, attention_place="hybrid"),
    "auto, mixed, batch": make_policy(
        "auto", 3, 3, **BATCH, **KERNEL, mixed_prefill=True, attention_place="hybrid", weights_on_gpu=0.3
    ),
    "auto, mixed, resident": make_policy("auto", 3, 2, **BATCH, **RESIDENT, mixed_prefill=True),
    "auto, mixed, split, experts on both": make_policy(
        "auto", 4, 2, **BATCH, **SPLIT, **CPU_EXPERTS, mixed_prefill=True, weights_on_gpu=0.2
    ),
    "auto, experts on both": make_policy(
        "auto", 4, 2, **BATCH, **HYBRID, **CPU_EXPERTS, **KERNEL, weights_on_gpu=0.2, dense_weights_on_gpu=0.4
    ),
    "auto, mixed, micro-batch, experts on both": make_policy(
        "auto", 4, 2, **HYBRID, **CPU_EXPERTS, **KERNEL, mixed_prefill=True
    ),
}

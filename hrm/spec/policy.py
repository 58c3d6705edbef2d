"""A policy: the handful of choices that decide how fast an offloaded model runs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Field(ge=0.0, le=1.0)

AttentionPlace = Literal["cpu", "resident", "streamed", "hybrid", "split"]
FfnBatching = Literal["micro_batch", "batch"]
ExpertCacheMode = Literal["rows", "lru", "lfu", "static", "predictive"]


def attention_place_of(attention_on_gpu: float, kv_on_gpu: float, preferred: str = "") -> AttentionPlace:
    """The attention class that two shares belong to; `preferred` where it is among several that allow them."""
    allowed: dict[AttentionPlace, bool] = {
        "cpu": attention_on_gpu == 0 and kv_on_gpu == 0,
        "resident": attention_on_gpu == 1 and kv_on_gpu == 1,
        "streamed": attention_on_gpu == 1,
        "hybrid": abs(attention_on_gpu - kv_on_gpu) <= 1e-9,
        "split": True,
    }
    fitting = [place for place, fits in allowed.items() if fits]
    return next((place for place in fitting if place == preferred), fitting[0])


class Policy(BaseModel):
    """Where everything lives and runs, and how it is batched. All ratios lie in [0, 1].

    `batch_size` N sequences are in flight, in `micro_batch_size` mu sequences per attention micro-batch (N is a whole
    number of them); experts run on `ffn_batch_size` tokens at a time. `attention_on_gpu` A_g is the share of decode
    attention done on the GPU (by sequences), `kv_on_gpu` r_c the share of the KV cache resident there;
    `experts_on_gpu` F_g the share of decode expert work done on the GPU, `weights_on_gpu` r_w the share of routed-
    expert weights resident there, `weights_on_disk` the share that lies on disk. `dense_weights_on_gpu` is the
    resident share of all other layer weights and the LM head. `page_pool_bytes` is GPU memory for streamed weights
    (all devices). `attention_lookahead` is how many micro-batches CPU attention is ahead of the GPU;
    `hidden_states_by` says whether small copies to the GPU (attention results, hidden states) queue behind weights on
    the copy engine or are read by a GPU kernel; `host_weights`, whether weights and KV cache are copied straight from
    page-locked memory or staged out of pageable memory first; `weight_prefetch`, whether weights are fetched ahead in
    all passes and across them, or in decode passes only and not for the next pass. With `mixed_prefill` every pass
    carries decode tokens and the prefill of the requests that replace finished ones (MoE-Lens); otherwise the whole
    batch is prefilled, then decoded (MoE-Lightning).

    `expert_cache` says what schedule expert_cache keeps on the GPU: the share r_w of every expert's rows, or whole
    experts in slots that hold the share r_w of all, replaced by use (lru, lfu), never (static) or by prediction. With
    whole experts, `experts_on_gpu` is the share of a layer's missed experts that are copied to the GPU; those with the
    fewest tokens are left to the CPU. What lies in a slot is always computed on the GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schedule: str
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    ffn_batch_size: int = Field(ge=1)
    attention_on_gpu: float = Ratio
    experts_on_gpu: float = Ratio
    weights_on_gpu: float = Ratio
    kv_on_gpu: float = Ratio
    dense_weights_on_gpu: float = Ratio
    weights_on_disk: float = Ratio
    attention_place: AttentionPlace
    ffn_batching: FfnBatching
    mixed_prefill: bool
    prefill_chunk_tokens: int = Field(ge=1)
    page_pool_bytes: float = Field(ge=0.0)
    tensor_parallel_size: int = Field(ge=1)
    attention_lookahead: int = Field(default=2, ge=1)
    hidden_states_by: Literal["copy_engine", "kernel"] = "copy_engine"
    host_weights: Literal["page_locked", "pageable"] = "page_locked"
    weight_prefetch: Literal["always", "within_decode"] = "always"
    expert_cache: ExpertCacheMode = "rows"

    @property
    def caches_whole_experts(self) -> bool:
        """Whether slots on the GPU hold whole experts."""
        return self.expert_cache != "rows"

    @property
    def expert_work_on_gpu(self) -> float:
        """Share of decode expert work done on the GPU; of whole-expert caches under uniform routing, with hit rate r_w.

        Prediction is taken to be right: it leaves nothing to the CPU.
        """
        if not self.caches_whole_experts:
            return self.experts_on_gpu
        hit_rate = 1.0 if self.expert_cache == "predictive" else self.weights_on_gpu
        return hit_rate + self.experts_on_gpu * (1 - hit_rate)

    @property
    def num_micro_batches(self) -> int:
        """n = N / mu."""
        return self.batch_size // self.micro_batch_size

    def resized(self, num_micro_batches: int, micro_batch_size: int) -> "Policy":
        """The same choices with a batch of n x mu sequences."""
        batch = num_micro_batches * micro_batch_size
        ffn = batch if self.ffn_batching == "batch" else micro_batch_size
        changes = {"batch_size": batch, "micro_batch_size": micro_batch_size, "ffn_batch_size": ffn}
        return Policy.model_validate(self.model_dump() | changes)

    @model_validator(mode="after")
    def _consistent(self) -> "Policy":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a whole number of micro_batch_size {self.micro_batch_size}"
            )
        expected = self.batch_size if self.ffn_batching == "batch" else self.micro_batch_size
        if self.ffn_batch_size != expected:
            raise ValueError(
                f"ffn_batch_size {self.ffn_batch_size} contradicts ffn_batching {self.ffn_batching}: must be {expected}"
            )
        if self.kv_on_gpu > self.attention_on_gpu + 1e-9:
            raise ValueError("kv_on_gpu exceeds attention_on_gpu: KV kept on the GPU is attended there")
        if self.attention_place != attention_place_of(self.attention_on_gpu, self.kv_on_gpu, self.attention_place):
            raise ValueError(
                f"attention_place {self.attention_place} contradicts attention_on_gpu {self.attention_on_gpu:g} and "
                f"kv_on_gpu {self.kv_on_gpu:g}"
            )
        if self.weights_on_gpu > self.experts_on_gpu + 1e-9 and not self.caches_whole_experts:
            raise ValueError("weights_on_gpu exceeds experts_on_gpu: experts kept on the GPU are computed there")
        if self.weights_on_gpu + self.weights_on_disk > 1 + 1e-9:
            raise ValueError("weights_on_gpu + weights_on_disk exceeds 1")
        if self.caches_whole_experts:
            self._check_cache()
        return self

    def _check_cache(self) -> None:
        """Slots are filled straight from page-locked memory, and everything that is not copied lies on the GPU."""
        needed = {
            "schedule": (self.schedule, "expert_cache"),
            "attention_place": (self.attention_place, "resident"),
            "weights_on_disk": (self.weights_on_disk, 0),
            "host_weights": (self.host_weights, "page_locked"),
        }
        for name, (value, wanted) in needed.items():
            if value != wanted:
                raise ValueError(f"expert_cache {self.expert_cache} needs {name} {wanted}, not {value}")

"""Attention of one layer: decode on the CPU and on the GPU over paged KV, and prefill on the GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch.nn import functional

from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.shapes import Shapes
from runtime.calibration.timing import random_tensor, time_calls
from runtime.kernels.cpu_attention import decode_attention as decode_on_cpu
from runtime.kernels.gpu_attention import decode_attention as decode_on_gpu

BLOCK = 16  # tokens of a KV block
_PREFILL_TOKENS = 16384  # of all prompts of one call
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DecodeStep:
    """What one step of decode attention reads.

    qkv [B, N + 2 K, D], kv [blocks, 2, K, block, D], table [B, blocks of a sequence] int32, lengths [B] int32.
    """

    shapes: Shapes
    context: int
    qkv: torch.Tensor
    kv: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor

    @property
    def bytes(self) -> int:
        """K and V once, queries and outputs once: what the cost model counts."""
        queries = 2 * self.shapes.num_attention_heads * self.shapes.head_dim
        elements = _kv_elements(self.shapes, self.context) + queries
        return self.qkv.shape[0] * elements * self.qkv.element_size()

    @property
    def flops(self) -> float:
        """Scores and PV."""
        return 4.0 * self.qkv.shape[0] * self.context * self.shapes.num_attention_heads * self.shapes.head_dim


def decode_step(
    shapes: Shapes, dtype: torch.dtype, context: int, kv_bytes: int, device: torch.device = _CPU
) -> DecodeStep:
    """As many sequences as make `kv_bytes` of KV, at least one; blocks lie in random order."""
    heads, kv_heads, width = shapes.num_attention_heads, shapes.num_key_value_heads, shapes.head_dim
    batch = max(1, kv_bytes // (_kv_elements(shapes, context) * dtype.itemsize))
    blocks = ceil(context / BLOCK)
    table = torch.randperm(batch * blocks).to(torch.int32).view(batch, blocks)
    return DecodeStep(
        shapes=shapes,
        context=context,
        qkv=random_tensor((batch, heads + 2 * kv_heads, width), dtype, device),
        kv=random_tensor((batch * blocks, 2, kv_heads, BLOCK, width), dtype, device),
        table=table.to(device),
        lengths=torch.full((batch,), context, dtype=torch.int32, device=device),
    )


def cpu_decode(step: DecodeStep) -> Callable[[], None]:
    """The step on the CPU, with all threads."""
    shapes, threads = step.shapes, torch.get_num_threads()
    out = torch.empty(step.qkv.shape[0], shapes.num_attention_heads, shapes.head_dim, dtype=step.qkv.dtype)
    scale = shapes.head_dim**-0.5
    return lambda: decode_on_cpu(step.qkv, step.kv, step.table, step.lengths, out, scale, threads)


def gpu_decode(step: DecodeStep) -> Callable[[], torch.Tensor]:
    """The step on the device its tensors lie on."""
    heads, scale = step.shapes.num_attention_heads, step.shapes.head_dim**-0.5
    table, lengths = step.table.long(), step.lengths.long()
    return lambda: decode_on_gpu(step.qkv, step.kv, table, lengths, heads, scale)


def contiguous_decode(step: DecodeStep) -> Callable[[], torch.Tensor]:
    """The same work over contiguous KV: query heads of a group as queries of their KV head."""
    shapes, batch = step.shapes, step.qkv.shape[0]
    kv_heads, width = shapes.num_key_value_heads, shapes.head_dim
    q = step.qkv[:, : shapes.num_attention_heads].reshape(batch, kv_heads, -1, width)  # [B, K, G, D]
    k, v = (step.kv[:, i].reshape(batch, kv_heads, -1, width)[:, :, : step.context].contiguous() for i in (0, 1))
    return _attention(q, k, v, is_causal=False)


def measure_decode(
    plan: Plan,
    dtype: torch.dtype,
    device: torch.device,
    kv_bytes: int,
    bind: Callable[[DecodeStep], Callable[[], object]],
) -> tuple[Timing, ...]:
    """Decode attention by context; `bind` makes the call from what it reads."""
    timings = []
    for context in plan.contexts:
        step = decode_step(plan.shapes, dtype, context, kv_bytes, device)
        timings.append(time_calls(bind(step), device, plan.effort, context, step.bytes, step.flops))
    return tuple(timings)


def measure_prefill(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[Timing, ...]:
    """Causal attention over whole prompts on `device`, by prompt length; flops are those of the causal half."""
    shapes, timings = plan.shapes, []
    heads, kv_heads, width = shapes.num_attention_heads, shapes.num_key_value_heads, shapes.head_dim
    for prompt in plan.prompts:
        batch = max(1, (_PREFILL_TOKENS if device.type == "cuda" else max(plan.prompts)) // prompt)
        q = random_tensor((batch, heads, prompt, width), dtype, device)
        k, v = (random_tensor((batch, kv_heads, prompt, width), dtype, device) for _ in "kv")
        moved = 2 * batch * prompt * (heads + kv_heads) * width * dtype.itemsize
        flops = 4.0 * batch * prompt * (prompt + 1) / 2 * heads * width
        timings.append(time_calls(_attention(q, k, v, is_causal=True), device, plan.effort, prompt, moved, flops))
    return tuple(timings)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool) -> Callable[[], torch.Tensor]:
    """q [B, N, S, D], k and v [B, K, S, D]."""
    grouped = q.shape[1] != k.shape[1]
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=grouped)


def _kv_elements(shapes: Shapes, context: int) -> int:
    return 2 * context * shapes.num_key_value_heads * shapes.head_dim

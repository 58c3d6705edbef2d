"""Missed experts that are computed on the CPU, from host memory, while others are copied. T tokens, H hidden_size."""

import numpy as np
import torch

from hrm.schedule.task import Task
from runtime.kernels.listed_experts import listed_experts
from runtime.tasks.layer_plan import layer_plan, release_plan, slots_of
from runtime.tasks.received import received
from runtime.tasks.state import PassState


def left_expert_ffn(state: PassState, index: int, task: Task) -> None:
    """The experts that the cache leaves to the CPU, for hidden states and gate weights that were sent there.

    Which experts tokens chose is in the layer's plan.
    """
    memory, slots, members = state.memory, slots_of(state), state.members(task.micro_batch)
    under_way = layer_plan(state, task.layer)
    parts = [under_way.experts[j] for j in members]
    experts = parts[0] if len(parts) == 1 else np.concatenate(parts)
    counts = [len(under_way.experts[j]) for j in members]
    x = received(state, "cpu_x", members, [(n, memory.config.hidden_size) for n in counts], memory.config.dtype)
    gates = received(
        state, "cpu_w", members, [(n, memory.config.top_k) for n in counts], state.sent_to_cpu[task.layer, members[0]]
    )
    out = memory.staging("cpu_out", task.micro_batch).host(tuple(x.shape), memory.config.dtype)
    listed, addresses = under_way.plan.on_cpu, slots.host_addresses(under_way.place)
    rows, threads = slots.storage.weights.rows, torch.get_num_threads()
    listed_experts(x, gates, experts, listed, addresses, rows, out, threads, memory.scratch, signal=state.signal(index))
    release_plan(state, task.layer)

"""The cost model of MoE-Lightning's public solver, as node programs that our solvers can solve.

Source: github.com/caoshiyi/artifacts, branch asplos25, fastmoe/backend/optimizer.py and utils.py, restated here in this
toolkit's terms. It is theirs on purpose, with what `test_published_goldens.py` shows to differ from ours: attention
flops without PV, no Q/K/V/O projections in the time of a layer, GiB/s for bandwidth, unexplained 0.86, 0.8 and 1.2.
Only the case it was published for: one GPU, attention on the CPU, KV in CPU memory, the decode stage.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.node import Nodes, single_nodes
from hrm.schedule.registry import placements
from hrm.search.node_programs import MAX_PASSES, NUM_COLS, Col, NodePrograms

Cells = NDArray[np.float64]

GPU_MEMORY_SHARE, CPU_MEMORY_SHARE, WORKSPACE_FACTOR = 0.86, 0.8, 1.2
LAYERS, HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, HEADS, KV_HEADS = 32, 4096, 14336, 8, 2, 32, 8  # Mixtral 8x7B
HEAD_DIM = HIDDEN // HEADS
KV_WIDTH = KV_HEADS * HEAD_DIM
EXPERT_LAYER_BYTES = 2 * 3 * HIDDEN * INTERMEDIATE * EXPERTS
DENSE_BYTES = LAYERS * 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_WIDTH)  # Q, O and K, V


def attention_flops(sequences: Cells, context: float) -> Cells:
    """Query times keys, and two per score for the softmax; the product with the values is left out."""
    return sequences * context * HEADS * (2 * HEAD_DIM + 2)


def attention_bytes(sequences: Cells, context: float, bytes_per_element: float = 2.0) -> Cells:
    """Query and result, keys and values."""
    return bytes_per_element * sequences * (2 * HEADS * HEAD_DIM + 2 * context * KV_WIDTH)


def ffn_flops(tokens: Cells) -> Cells:
    """Three matrices for each of the selected experts."""
    return 2 * tokens * 3 * HIDDEN * INTERMEDIATE * TOP_K


def ffn_bytes(tokens: Cells) -> Cells:
    """Every expert once; a hidden state in, an intermediate-wide one out."""
    return 2 * tokens * (HIDDEN + INTERMEDIATE) + EXPERT_LAYER_BYTES


@dataclass(frozen=True)
class PublishedMachine:
    """The solver's constants of a machine, and its workload (one prompt length)."""

    gpu_memory_bytes: float
    cpu_memory_bytes: float
    link_bytes_per_s: float
    gpu_bytes_per_s: float
    cpu_bytes_per_s: float
    gpu_flops_per_s: float
    cpu_flops_per_s: float
    prompt_len: int
    gen_len: int

    def expert_seconds(self, mu: Cells, k: Cells) -> Cells:
        """All micro-batches through the experts of one layer on the GPU."""
        roofs = ffn_flops(mu) / self.gpu_flops_per_s, ffn_bytes(mu) / self.gpu_bytes_per_s
        return k * np.maximum(*roofs)

    def attention_seconds(self, mu: Cells, k: Cells) -> Cells:
        """All micro-batches through one layer's attention on the CPU, at the final context."""
        context = self.prompt_len + self.gen_len
        flops, moved = attention_flops(mu, context), attention_bytes(mu, context)
        return k * np.maximum(flops / self.cpu_flops_per_s, moved / self.cpu_bytes_per_s)

    def gpu_bytes(self, mu: Cells, k: Cells) -> Cells:
        """Peak GPU memory with no expert resident: the larger of prefill and decode, and two layers' buffers."""
        batch, prompt = mu * k, self.prompt_len
        decode = 4 * HIDDEN * batch
        hidden = 4 * HIDDEN * mu * prompt + 2 * HIDDEN * batch * prompt
        prefill = hidden + 8 * prompt * KV_WIDTH * mu
        workspace = 2 * mu * prompt * TOP_K * (HIDDEN + 3 * INTERMEDIATE) * WORKSPACE_FACTOR
        return DENSE_BYTES + np.maximum(decode, prefill) + 2 * EXPERT_LAYER_BYTES + workspace

    def cpu_bytes(self, batch: Cells) -> Cells:
        """CPU memory with every expert in it: experts, two layers' staging, KV at the end, prefill hidden states."""
        kv = 4 * (self.prompt_len + self.gen_len) * KV_WIDTH * LAYERS * batch
        return EXPERT_LAYER_BYTES * (LAYERS + 2) + kv + 2 * HIDDEN * batch * self.prompt_len

    def decode_throughput(self, layer_seconds: Cells, batch: Cells) -> Cells:
        """gen_len tokens per sequence over gen_len - 1 passes: the published definition."""
        return batch * self.gen_len / (layer_seconds * (self.gen_len - 1) * LAYERS)


def published_programs(machine: PublishedMachine, mu: Cells, k: Cells) -> NodePrograms:
    """One linear program per cell (mu, k): the share of resident experts, and the seconds of one layer."""
    nodes = single_nodes(mu, mu * k)
    lower, upper = np.zeros((len(mu), NUM_COLS)), np.zeros((len(mu), NUM_COLS))
    lower[:, [Col.UNIT, Col.T]] = upper[:, [Col.UNIT, Col.T]] = 1.0
    upper[:, Col.WEIGHTS] = 1.0
    upper[:, [Col.PASS, Col.GPU_EXCESS, Col.CPU_EXCESS, Col.DISK_EXCESS]] = np.inf
    cost = np.zeros((len(mu), NUM_COLS))
    cost[:, Col.PASS] = 1.0 / machine.decode_throughput(np.ones(len(mu)), nodes.n_hi)
    names, rows = zip(*_rows(machine, nodes, k), strict=True)
    return NodePrograms(placements("cgopipe")[0], nodes, names, np.stack(rows, axis=1), cost, lower, upper,
                        np.ones((len(mu), MAX_PASSES)), 1.0)  # fmt: skip


def _rows(machine: PublishedMachine, nodes: Nodes, k: Cells) -> list[tuple[str, Cells]]:
    mu, batch = nodes.mu_lo, nodes.n_hi
    stream = EXPERT_LAYER_BYTES / machine.link_bytes_per_s
    gpu = machine.gpu_memory_bytes * GPU_MEMORY_SHARE
    cpu = machine.cpu_memory_bytes * CPU_MEMORY_SHARE
    resident = EXPERT_LAYER_BYTES * (LAYERS - 2) / gpu  # what is resident needs no streaming buffer
    freed = -EXPERT_LAYER_BYTES * (LAYERS + 2) / cpu
    return [
        ("htod", _row(batch, T=stream, WEIGHTS=-stream, PASS=-1.0)),
        ("gpu", _row(batch, T=machine.expert_seconds(mu, k), PASS=-1.0)),
        ("cpu", _row(batch, T=machine.attention_seconds(mu, k), PASS=-1.0)),
        ("gpu_memory", _row(batch, T=machine.gpu_bytes(mu, k) / gpu - 1, WEIGHTS=resident, GPU_EXCESS=-1.0)),
        ("cpu_memory", _row(batch, T=machine.cpu_bytes(batch) / cpu - 1, WEIGHTS=freed, CPU_EXCESS=-1.0)),
    ]


def _row(like: Cells, **coefficients: Cells | float) -> Cells:
    row = np.zeros((len(like), NUM_COLS))
    for column, value in coefficients.items():
        row[:, Col[column]] = value
    return row


def published_grid() -> list[int]:
    """The micro-batch sizes the published search tries: 1, 2, 3, 4, then steps of 32."""
    return [1, 2, 3, *range(4, 4096, 32)]


def first_descent(throughputs: Cells) -> int:
    """Index at which the published search stops for one mu: the last before throughput first falls."""
    falls = np.flatnonzero(np.diff(throughputs) < 0)
    return int(falls[0]) if len(falls) else len(throughputs) - 1

"""One model on one device, driven pass by pass under one policy after the other."""

import gc
from collections import deque

import numpy as np
import torch

from hrm.errors import HrmError
from hrm.spec.policy import Policy
from runtime.checkpoint.source import WeightSource
from runtime.device import make_device
from runtime.kv_need import kv_plan
from runtime.layouts import PolicyLayout, layout_of
from runtime.load import load_memory
from runtime.memory.kv_cache import empty_kv_cache, make_kv_cache
from runtime.model_memory import ModelMemory
from runtime.pass_run import PassRun
from runtime.passes import PassResult, PassRunner
from runtime.requests.request import Request
from runtime.scheduler import admit
from runtime.sequences import make_table


class Bench:
    """Weights stay in memory from a policy to the next where both want them in the same places."""

    def __init__(self, model: WeightSource, device: str, gpu_memory: float | None) -> None:
        self.model, self.gpu_memory = model, gpu_memory
        self.device = make_device(device)
        self._layout: PolicyLayout | None = None
        self._memory: ModelMemory | None = None

    def open(self, policy: Policy, requests: list[Request]) -> "Session":
        """Everything in place for `requests` under a policy.

        Raises:
            PolicyError: the runtime cannot run it. HrmError, torch.cuda.OutOfMemoryError: memory that cannot be had.
        """
        layout = layout_of(self.model, policy)
        memory = self._kept(layout) or self._load(layout)
        self._memory, self._layout = memory, layout
        plan = kv_plan(memory, policy, requests, None)
        memory.kv = make_kv_cache(self.model.config, plan, self.device.torch_device, memory.cpu_threads)
        return Session(policy, memory, PassRunner(self.device, memory, layout, keep_runs=True), requests)

    def forget(self) -> None:
        """Gives all memory back."""
        self._memory = self._layout = None
        self._collect()

    def _collect(self) -> None:
        """Memory that nobody holds goes back to the system and the GPU."""
        gc.collect()
        if self.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, layout: PolicyLayout) -> ModelMemory:
        self.forget()
        return load_memory(self.model, layout, self.device, self.gpu_memory, None)

    def _kept(self, layout: PolicyLayout) -> ModelMemory | None:
        """The weights of the policy before with a new pool and an empty cache; None where they lie elsewhere."""
        old, self._memory = self._memory, None
        if old is None or self._layout is None or _places(layout) != _places(self._layout):
            return None
        old.kv, old.pool = empty_kv_cache(lock=False), torch.empty(0, dtype=torch.uint8)
        old.dense.base = 0
        self._collect()
        pool = torch.empty(layout.pool_bytes(), dtype=torch.uint8, device=self.device.torch_device)
        return ModelMemory(
            old.config, old.family, old.device, old.experts, old.dense, old.embedding, old.final_norm, pool, old.kv,
            old.cpu_threads, old.slots,
        )  # fmt: skip


def _places(layout: PolicyLayout) -> object:
    """What decides where weights lie; an expert cache begins empty with every policy."""
    policy = layout.policy
    cache = object() if policy.caches_whole_experts else None
    return layout.experts, layout.region, policy.dense_weights_on_gpu, policy.host_weights, cache


ENOUGH = 0.9  # of the policy's sequences: blocks that are not full take room, and what runs is predicted as it runs


class Session:
    """A policy with requests to run: as the engine does it, but pass by pass, and every pass's marks are kept."""

    def __init__(self, policy: Policy, memory: ModelMemory, runner: PassRunner, requests: list[Request]) -> None:
        self.policy, self.memory, self.runner = policy, memory, runner
        self._waiting = deque(requests)
        sampling = requests[0].sampling
        longest = len(requests[0].prompt) + sampling.max_tokens
        self._table = make_table(min(policy.batch_size, len(requests)), longest, sampling.max_tokens)

    def step(self) -> tuple[PassResult, PassRun]:
        """One pass.

        Raises:
            HrmError: the KV cache does not hold the policy's batch. Whatever a task raises.
        """
        admit(self._table, self._waiting, self.policy, self.memory.kv.pools)
        if self._waiting and not self.policy.mixed_prefill:
            there = int(self._table.active.sum())
            if there < ENOUGH * self.policy.batch_size:
                raise HrmError(
                    f"the KV cache holds {there:,} of the {self.policy.batch_size:,} sequences of the policy"
                )
            self._waiting.clear()
        result = self.runner.run(self._table)
        run = self.runner.last_run
        assert run is not None
        self._table.append(result.slots, result.tokens)
        ended = self._table.made[result.slots] >= self._table.target[result.slots]
        for slot in np.asarray(result.slots)[ended].tolist():
            self._table.leave(slot, self.memory.kv.pools)
        return result, run

    def close(self) -> None:
        """Ends the threads."""
        self.runner.close()

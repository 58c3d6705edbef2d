"""Requests in, passes, tokens out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from hrm.errors import HrmError
from hrm.predict.timeline import Timeline
from hrm.spec.policy import Policy
from runtime.checkpoint.source import WeightSource
from runtime.device import make_device
from runtime.experts.recorder import RoutingRecorder
from runtime.experts.units import Units
from runtime.finishing import Detokenise, finish_reason, may_end, text_of
from runtime.kv_need import kv_plan
from runtime.layouts import layout_of
from runtime.load import load_memory
from runtime.memory.kv_cache import empty_kv_cache, make_kv_cache
from runtime.passes import Forecast, PassResult, PassRunner
from runtime.progress import EngineProgress, PassRecord
from runtime.prompts import Prompt, Tokenise, as_requests, beyond_vocabulary
from runtime.requests.request import Completion, Refusal, Request, Sampling
from runtime.scheduler import admit, refusal
from runtime.sequences import make_table

_OUT_OF_MEMORY_ADVICE = (
    "the policy does not fit here; search with a profile of less memory_usable (hrm calibrate --gpu-memory), or lower "
    "weights_on_gpu or prefill_chunk_tokens in the policy"
)


class Engine:
    """One model under one policy. Not to be used by several threads at once.

    gpu_memory: bytes that the GPU's allocator may take, to stand for a smaller card. kv_tokens: room for so many tokens
    in the KV cache; without it, what `generate`'s requests need under the policy, as far as memory goes. recorder:
    keeps which experts every token chooses. forecast: what the next decode pass will need, for an expert cache that is
    filled ahead (`PassRunner.forecast`). units: two batches in flight, in turns.

    Raises:
        PolicyError: a policy that the runtime cannot run. HrmError: memory that cannot be had.
        CheckpointError: weights that cannot be read. WorkloadError: as `RoutingRecorder.bind`.
    """

    def __init__(
        self,
        model: WeightSource,
        policy: Policy,
        device: str = "cuda",
        gpu_memory: float | None = None,
        detokenise: Detokenise | None = None,
        tokenise: Tokenise | None = None,
        kv_tokens: int | None = None,
        keep_logits: bool = False,
        progress: Callable[[int, int], None] | None = None,
        recorder: RoutingRecorder | None = None,
        forecast: Forecast | None = None,
        units: Units | None = None,
    ) -> None:
        if recorder is not None:
            recorder.bind(model.spec)
        self.policy, self.config, self.units = policy, model.config, units
        self._admission = policy if units is None else units.admission(policy)
        self.tokenise, self.detokenise = tokenise, detokenise
        self.device = make_device(device)
        self.layout = layout_of(model, policy)
        self._kv_tokens = kv_tokens
        self.memory = load_memory(model, self.layout, self.device, gpu_memory, progress)
        self.runner = PassRunner(
            self.device, self.memory, self.layout, keep_logits, recorder=recorder, forecast=forecast
        )
        self.table = make_table(0, 1, 1)
        self.progress = EngineProgress()
        self._logits: dict[int, list[torch.Tensor]] = {}
        self.last_pass: PassResult | None = None
        self._runs = 0

    @property
    def last_timeline(self) -> Timeline | None:
        """Measured starts and ends of the latest pass's tasks."""
        return self.runner.last_timeline

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling | None = None) -> Iterator[Completion | Refusal]:
        """Answers prompts as they finish, in any order; those that can never fit are refused and the rest go on.

        prompts: requests; or texts or token ids, which all get `sampling` and are named by their place.

        Raises:
            RequestError: a plain prompt without `sampling`, or text without `tokenise`.
            HrmError: memory or a device that fails.
        """
        asked, most = as_requests(prompts, sampling, self.tokenise), self.config.max_position_embeddings
        if self.runner.recorder is not None:
            self.runner.recorder.begin(asked)
        self.make_room([r for r in asked if len(r.prompt) + r.sampling.max_tokens <= most])
        pools, waiting = self.memory.kv.pools, deque[Request]()
        for request in asked:
            reason = beyond_vocabulary(request, self.config.vocab_size)
            reason = reason or refusal(request, self.policy, pools, most, self.detokenise is not None)
            if reason is None:
                waiting.append(request)
            else:
                yield Refusal(request, reason)
        self._runs += 1
        mine = self._runs
        while waiting or self.table.active.any():
            yield from self.step(waiting)
            if self._runs != mine:
                raise HrmError(
                    "engine: generate() was called again before this run was through; run one after the other"
                )

    def step(self, waiting: deque[Request]) -> list[Completion]:
        """Takes in what fits of `waiting`, runs one pass, and returns what it finished."""
        admit(self.table, waiting, self._admission, self.memory.kv.pools)
        if self.units is not None:
            self.units.take_turn(self.table)
        try:
            self.last_pass = result = self.runner.run(self.table)
        except torch.OutOfMemoryError as error:
            raise HrmError(f"GPU memory: {_first_sentences(error)}; {_OUT_OF_MEMORY_ADVICE}") from None
        done = self._advance(result)
        decoding = sum(len(rows.slots) for rows in result.batch.rows)
        prompts = result.batch.slice.tokens - decoding
        self.progress.add(PassRecord(result.seconds, decoding, prompts, len(result.slots), len(done)))
        self.progress.active, self.progress.waiting = int(self.table.active.sum()), len(waiting)
        return done

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine's threads."""
        self.runner.close()

    def make_room(self, requests: list[Request]) -> None:
        """KV cache and slots for the requests: memory of an earlier call's is kept where it is large enough; what a run
        that was left or has failed still held is free again.
        """
        plan = kv_plan(self.memory, self._admission, requests, self._kv_tokens)
        kv = self.memory.kv
        if kv.plan.holds(plan):
            kv.forget()
        else:
            del kv  # its memory is needed
            self.memory.kv = empty_kv_cache(plan.lock)
            device, threads = self.device.torch_device, self.memory.cpu_threads
            self.memory.kv = make_kv_cache(self.config, plan, device, threads)
            self.device.synchronise()
        self._logits.clear()
        longest = max((len(r.prompt) + r.sampling.max_tokens for r in requests), default=1)
        most = max((r.sampling.max_tokens for r in requests), default=1)
        self.table = make_table(min(self._admission.batch_size, max(1, len(requests))), longest, most)

    def _advance(self, result: PassResult) -> list[Completion]:
        """Every sequence has one more token; those that end leave."""
        table = self.table
        table.append(result.slots, result.tokens)
        if result.logits is not None:
            for slot, logits in zip(result.slots.tolist(), result.logits, strict=True):
                self._logits.setdefault(slot, []).append(logits)
        return [
            done
            for slot in may_end(table, result.slots, self.config.eos_token_ids)
            if (done := self._finish(slot)) is not None
        ]

    def _finish(self, slot: int) -> Completion | None:
        table, request = self.table, self.table.requests[slot]
        assert request is not None
        tokens = table.generated[slot, : table.made[slot]].tolist()
        reason = finish_reason(request.sampling, tokens, self.config.eos_token_ids, self.detokenise)
        if reason is None:
            return None
        table.leave(slot, self.memory.kv.pools)
        logits = self._logits.pop(slot, None)
        text = text_of(request.sampling, tokens, self.config.eos_token_ids, self.detokenise)
        return Completion(request, tuple(tokens), text, reason, None if logits is None else torch.stack(logits))


def _first_sentences(error: Exception) -> str:
    """What was asked for and what there is, without PyTorch's advice on its allocator."""
    return ". ".join(str(error).split(". ")[:2]).rstrip(".")

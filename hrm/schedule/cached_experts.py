"""Whole experts in slots on the GPU, prefetched by prediction and corrected once the router has run.

ExpertFlow (arXiv 2410.17954, sections 3.2 and 3.3); without prediction, a cache of whole experts that is filled on
demand (Mixtral-offloading, arXiv 2312.17238). A share of the missed experts may be computed on the CPU, beside the
copies of the others. Which expert goes to which slot is the cache's to say; a graph holds how much is copied. Leaves
out that experts in place wait for the host to know the router's choice, as corrections do, and waves of more experts
than slots are free.
"""

from collections.abc import Iterable

from hrm.schedule.builder import PassBuilder
from hrm.schedule.cache_stats import CacheStats
from hrm.schedule.steps import Steps
from hrm.schedule.task import Kind, Resource, Work


def cached_experts(build: PassBuilder, stats: CacheStats) -> None:
    """Emits a pass over experts in slots; the copies into them are as large as `stats` says."""
    _CachedPass(build, stats).emit()


class _CachedPass:
    """Emits tasks; remembers those that the next copies wait for."""

    def __init__(self, build: PassBuilder, stats: CacheStats) -> None:
        self.build, self.stats, self.steps = build, stats, Steps(build)
        self._batches = range(len(build.slice.micro_batches))
        self._computed: tuple[int, ...] = ()  # the last task on experts, whose slots may be overwritten after it
        self._prefetched: dict[int, int] = {}

    def emit(self) -> None:
        """The tasks of a pass."""
        build = self.build
        self._prefetch(0)
        for layer in range(build.num_layers):
            build.begin_block()
            build.fetch_dense(layer + 1)
            self._prefetch(layer + 1)
            routed = [self._attention(layer, j) for j in self._batches]
            done = self._experts(layer, routed) if build.has_experts(layer) else ()
            for j in self._batches:
                build.outputs[layer, j] = self.steps.all_reduce(layer, j, done or (routed[j],))
        for j in self._batches:
            self.steps.head(j)

    def _attention(self, layer: int, j: int) -> int:
        """A micro-batch through its attention and its router."""
        self.steps.enter(layer, j)
        self.steps.attend(layer, j)
        return self.steps.post(layer, j)

    def _prefetch(self, layer: int) -> None:
        """Queues the predicted experts of a layer, into slots that the layer before the last one leaves."""
        build, stats = self.build, self.stats
        if build.policy.expert_cache != "predictive" or layer == build.num_layers or not build.has_experts(layer):
            return
        share = stats.touched[layer] * stats.prefetched_in(layer) + stats.wasted_in(layer)
        self._prefetched[layer] = build.add(
            Kind.EXPERT_PREFETCH, layer, None, Resource.HTOD, Work(share=share), self._computed
        )

    def _experts(self, layer: int, routed: list[int]) -> tuple[int, ...]:
        """The experts in place for all tokens, beside the copies of the others; then these. Beside both, the CPU's.

        Hidden states leave for the CPU before the correction, whose issue waits for the router. Its result comes last,
        so that one thread can issue all of the GPU's work before it waits for the CPU.
        """
        build, stats = self.build, self.stats
        on_host = build.experts_on_gpu < 1
        missed = stats.missed_in(layer)
        on_cpu = stats.on_cpu_in(layer, build.experts_on_gpu)
        sent = self.steps.send_to_cpu(layer, tuple(self._batches), tuple(routed)) if on_host else ()
        copied = Work(share=stats.touched[layer] * (missed - on_cpu))
        correction = build.add(Kind.EXPERT_CORRECTION, layer, None, build.small_copies, copied, routed)
        ahead = (self._prefetched[layer],) if layer in self._prefetched else ()
        first = self._ffn(layer, 1.0 - missed, (*routed, *ahead))
        second = self._ffn(layer, missed - on_cpu, (*routed, correction))
        self._computed = (second,)
        if not on_host:
            return (first, second)
        read = stats.touched[layer] * on_cpu
        computed = self.steps.compute_on_cpu(layer, tuple(self._batches), sent, on_cpu, read)
        return (first, second, self.steps.load_from_cpu(computed))

    def _ffn(self, layer: int, share: float, after: Iterable[int]) -> int:
        batch = self.build.slice.micro_batches
        sequences, prompt_tokens = sum(mb.sequences for mb in batch), sum(mb.prompt_tokens for mb in batch)
        return self.build.add(Kind.EXPERT_FFN, layer, None, Resource.GPU, Work(sequences, prompt_tokens, share), after)

"""The steps of a micro-batch through a layer, as every schedule takes them; only their order differs."""

from dataclasses import replace

from hrm.schedule.builder import PassBuilder
from hrm.schedule.slice import MicroBatch
from hrm.schedule.task import Kind, Resource, Work

KV_BUFFERS = 2  # staging buffers for KV cache on its way to the GPU


class Steps:
    """Emits the tasks of micro-batches; remembers what the next step of each waits for."""

    def __init__(self, build: PassBuilder) -> None:
        self.build = build
        self._entered: dict[tuple[int, int], int] = {}
        self._attended: dict[tuple[int, int], int] = {}
        self._kv: dict[tuple[int, int], int] = {}
        self._stored: dict[tuple[int, int], int] = {}
        self._through: tuple[tuple[int, ...], ...] = ((), ())
        self._spilled: dict[int, int] = {}
        self._kv_fetches = 0
        self._kv_read: list[int] = []
        policy = build.policy
        self._kv_streamed = 1 - min(1.0, policy.kv_on_gpu / policy.attention_on_gpu) if policy.attention_on_gpu else 0.0

    def enter(self, layer: int, j: int) -> None:
        """Norm and QKV projection of a micro-batch, and what leaves the GPU for it: Q, K, V to the CPU, or K, V to
        store.

        CPU attention is queued at once.
        """
        build, mb = self.build, self.build.slice.micro_batches[j]
        before = [*self._hidden(layer, j, mb), *build.reads_dense(layer)]
        if (layer - 1, j) in self._stored:
            before.append(self._stored.pop((layer - 1, j)))
        work = Work(mb.sequences, mb.prompt_tokens)
        pre = build.add(Kind.PRE_ATTENTION, layer, j, Resource.GPU, work, before)
        build.reads_dense(layer, pre)
        self._entered[layer, j] = pre
        stored = 1 - build.policy.kv_on_gpu if mb.is_prefill else self._kv_streamed
        if (mb.is_prefill or mb.gpu_sequences) and stored > 0:
            tokens = Work(mb.gpu_sequences, mb.prompt_tokens, stored)
            self._stored[layer, j] = build.add(Kind.KV_STORE, layer, j, Resource.DTOH, tokens, (pre,))
        on_cpu = mb.sequences - mb.gpu_sequences
        if on_cpu:
            sent = build.add(Kind.QKV_OFFLOAD, layer, j, Resource.DTOH, Work(on_cpu), (pre,))
            self._attended[layer, j] = build.add(Kind.CPU_ATTENTION, layer, j, Resource.CPU, Work(on_cpu), (sent,))

    def _hidden(self, layer: int, j: int, mb: MicroBatch) -> tuple[int, ...]:
        """What makes the hidden state of a micro-batch present; between layers, prefill leaves it on the host.

        Where prompts are many, their hidden states come only once the last but one before is through, or they would
        fill the GPU.
        """
        build, work = self.build, Work(mb.sequences, mb.prompt_tokens)
        room = self._through[0] if mb.is_prefill and not build.keeps_prompts else ()
        if layer == 0:
            return (build.add(Kind.EMBEDDING_LOAD, 0, j, build.small_copies, work, room),)
        done = build.outputs[layer - 1, j]
        if not mb.is_prefill or not build.spills_hidden_states:
            return done
        stored = self._spilled.pop(j) if j in self._spilled else self._spill(layer - 1, j)
        return (build.add(Kind.HIDDEN_LOAD, layer, j, build.small_copies, work, (stored, *room)),)

    def _passed(self, done: tuple[int, ...]) -> None:
        """Another micro-batch has left its layer's attention, or with it the layer."""
        self._through = (self._through[1], done)

    def _spill(self, layer: int, j: int) -> int:
        """Hidden states of a micro-batch to the host."""
        mb = self.build.slice.micro_batches[j]
        work, done = Work(mb.sequences, mb.prompt_tokens), self.build.outputs[layer, j]
        return self.build.add(Kind.HIDDEN_STORE, layer, j, Resource.DTOH, work, done)

    def fetch_kv(self, layer: int, j: int) -> None:
        """Brings the cached K, V of a decoding micro-batch into one of two staging buffers."""
        build, mb = self.build, self.build.slice.micro_batches[j]
        if mb.gpu_sequences and self._kv_streamed > 0:
            freed = (self._kv_read[self._kv_fetches - KV_BUFFERS],) if self._kv_fetches >= KV_BUFFERS else ()
            self._kv_fetches += 1
            work = Work(mb.gpu_sequences, share=self._kv_streamed)
            if build.policy.host_weights == "pageable":
                freed = (*freed, build.add(Kind.KV_STAGE, layer, j, Resource.HOST, work, freed))
            self._kv[layer, j] = build.add(Kind.KV_FETCH, layer, j, Resource.HTOD, work, freed)

    def load_attention(self, layer: int, j: int) -> None:
        """Brings the CPU's attention result to the GPU."""
        if (layer, j) in self._attended:
            mb = self.build.slice.micro_batches[j]
            work = Work(mb.sequences - mb.gpu_sequences)
            after = (self._attended[layer, j],)
            resource = self.build.small_copies
            self._attended[layer, j] = self.build.add(Kind.ATTENTION_LOAD, layer, j, resource, work, after)

    def attend(self, layer: int, j: int) -> None:
        """Attention on the GPU, of prompt tokens or of the sequences whose share it is."""
        build, mb = self.build, self.build.slice.micro_batches[j]
        if not mb.is_prefill and not mb.gpu_sequences:
            return
        after = [self._entered[layer, j]]
        if (layer, j) in self._kv:
            after.append(self._kv[layer, j])
        work = Work(mb.gpu_sequences, mb.prompt_tokens)
        done = build.add(Kind.GPU_ATTENTION, layer, j, Resource.GPU, work, after)
        if (layer, j) in self._kv:
            self._kv_read.append(done)
        self._entered[layer, j] = done

    def post(self, layer: int, j: int) -> int:
        """Output projection, norm, router, shared experts and dense FFN; summed over the GPUs where there are
        several.
        """
        build, mb = self.build, self.build.slice.micro_batches[j]
        after = [self._entered.pop((layer, j)), *build.reads_dense(layer)]
        if (layer, j) in self._attended:
            after.append(self._attended.pop((layer, j)))
        work = Work(mb.sequences, mb.prompt_tokens)
        done = build.add(Kind.POST_ATTENTION, layer, j, Resource.GPU, work, after)
        build.reads_dense(layer, done)
        self._passed((done,))
        return self.all_reduce(layer, j, (done,))[0] if build.policy.tensor_parallel_size > 1 else done

    def all_reduce(self, layer: int, j: int, after: tuple[int, ...]) -> tuple[int, ...]:
        """Sums a micro-batch's hidden states over the GPUs; nothing to do on one."""
        build, mb = self.build, self.build.slice.micro_batches[j]
        if build.policy.tensor_parallel_size == 1:
            return after
        work = Work(mb.sequences, mb.prompt_tokens)
        return (build.add(Kind.ALL_REDUCE, layer, j, Resource.LINK, work, after),)

    def experts(self, layer: int, j: int, routed: int) -> None:
        """The routed experts of one micro-batch, on the GPU and the CPU as the policy divides them."""
        build = self.build
        done: tuple[int, ...] = (routed,)
        if build.has_experts(layer):
            share = build.experts_on_gpu
            done = self._gpu_experts(layer, j, routed, share) if share > 0 else ()
            if share < 1:
                done = (*done, self.cpu_experts(layer, (j,), (routed,), 1 - share))
        build.outputs[layer, j] = self.all_reduce(layer, j, done)
        self._through = (self._through[0], build.outputs[layer, j])
        mb = build.slice.micro_batches[j]
        if mb.is_prefill and build.spills_hidden_states and layer + 1 < build.num_layers:
            self._spilled[j] = self._spill(layer, j)  # at once: its memory is the next one's

    def _gpu_experts(self, layer: int, j: int, routed: int, share: float) -> tuple[int, ...]:
        build, mb = self.build, self.build.slice.micro_batches[j]
        pages = build.plan.of_layer(layer)
        work = Work(mb.sequences, mb.prompt_tokens, share, (pages.start, pages.stop))
        ffn = build.add(Kind.EXPERT_FFN, layer, j, Resource.GPU, work, (routed, *build.reads_pages(pages)))
        if j == len(build.slice.micro_batches) - 1:
            build.note_reader(pages, ffn)
        return (ffn,)

    def cpu_experts(self, layer: int, micro_batches: tuple[int, ...], routed: tuple[int, ...], share: float) -> int:
        """Experts on the CPU: hidden states of the micro-batches there, their share of the experts, results back."""
        sent = self.send_to_cpu(layer, micro_batches, routed)
        return self.load_from_cpu(self.compute_on_cpu(layer, micro_batches, sent, share))

    def send_to_cpu(self, layer: int, micro_batches: tuple[int, ...], routed: tuple[int, ...]) -> tuple[int, ...]:
        """Hidden states of micro-batches to the CPU's experts; what these wait for."""
        build, stores = self.build, []
        for j, ready in zip(micro_batches, routed, strict=True):
            mb = build.slice.micro_batches[j]
            work = Work(mb.sequences, mb.prompt_tokens)
            stores.append(build.add(Kind.HIDDEN_STORE, layer, j, Resource.DTOH, work, (ready,)))
        return tuple(stores[-1:])

    def compute_on_cpu(
        self, layer: int, micro_batches: tuple[int, ...], sent: tuple[int, ...], share: float, experts: float = 0.0
    ) -> int:
        """A share of the experts on the CPU; `experts`: as in `Work`."""
        build = self.build
        batch = [build.slice.micro_batches[j] for j in micro_batches]
        sequences, prompt_tokens = sum(mb.sequences for mb in batch), sum(mb.prompt_tokens for mb in batch)
        work = Work(sequences, prompt_tokens, share, experts=experts)
        j_or_all = micro_batches[0] if len(micro_batches) == 1 else None
        after = (*sent, *build.reads_host_share(layer))
        done = build.add(Kind.CPU_EXPERT_FFN, layer, j_or_all, Resource.CPU, work, after)
        build.note_host_reader(layer, done)
        return done

    def load_from_cpu(self, computed: int) -> int:
        """What the CPU's experts give, to the GPU."""
        build, task = self.build, self.build.tasks[computed]
        work = replace(task.work, share=1.0, experts=0.0)
        return build.add(Kind.HIDDEN_LOAD, task.layer, task.micro_batch, build.small_copies, work, (computed,))

    def head(self, j: int) -> None:
        """Last norm, LM head and sampling of a micro-batch."""
        build, mb = self.build, self.build.slice.micro_batches[j]
        last = build.num_layers - 1
        after = (*build.outputs[last, j], *build.reads_dense(build.num_layers))
        done = build.add(Kind.LM_HEAD, last, j, Resource.GPU, Work(mb.sequences, mb.prompt_tokens), after)
        build.reads_dense(build.num_layers, done)

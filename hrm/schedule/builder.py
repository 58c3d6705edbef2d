"""Collects the tasks of a pass: indices, and the streams of weights that every schedule shares."""

from collections.abc import Iterable

from hrm.roofline.linear import pages_ffn
from hrm.roofline.sizes import Sizes
from hrm.schedule.graph import TaskGraph
from hrm.schedule.pages import PagePlan
from hrm.schedule.slice import PassSlice
from hrm.schedule.task import Kind, Resource, Task, Work
from hrm.spec.policy import Policy

NO_SHARE = 1e-9  # rounding of shares that the solver made equal
STAGING_BUFFERS = 2  # page-locked buffers between the staging thread (or the disk) and the copy engine


class PassBuilder:
    """Tasks of one pass in order of emission, which is the order of every queue.

    `outputs[layer, micro_batch]` are the tasks after which a micro-batch's hidden state of that layer is complete.
    """

    def __init__(
        self, sizes: Sizes, work: PassSlice, policy: Policy, plan: PagePlan, hit_rate: tuple[float, ...] = ()
    ) -> None:
        self.sizes, self.slice, self.policy, self.plan, self.hit_rate = sizes, work, policy, plan, hit_rate
        self.num_layers = sizes.model.num_layers
        self.outputs: dict[tuple[int, int], tuple[int, ...]] = {}
        self.spills_hidden_states = True
        self.keeps_prompts = False
        self.tasks: list[Task] = []
        self.block_starts: list[int] = []
        self._next_page = plan.ahead
        self._next_unit = 1  # dense weights: layers in order, then the LM head, then the next pass's first layer
        self._fetched: dict[int, int] = {}
        self._page_reader: dict[int, int] = {}
        self._unit_fetched: dict[int, int] = {}
        self._unit_reader: dict[int, int] = {}
        self._host_shares: dict[int, int] = {}
        self._host_reader: dict[int, int] = {}
        self._routed: tuple[int, ...] = ()
        self._barrier: tuple[int, ...] = ()
        self._step_begin = 0

    @property
    def small_copies(self) -> Resource:
        """The queue of small urgent copies to the GPU: behind the weights, or past them."""
        return Resource.ZERO_COPY if self.policy.hidden_states_by == "kernel" else Resource.HTOD

    @property
    def experts_on_gpu(self) -> float:
        """Share of the experts' work done on the GPU: all of it in a pass that only prefills."""
        return self.policy.experts_on_gpu if self.slice.decodes else 1.0

    @property
    def streams_dense(self) -> bool:
        """Whether layer weights other than the experts are streamed."""
        return self.policy.dense_weights_on_gpu < 1

    def add(
        self, kind: Kind, layer: int, micro_batch: int | None, resource: Resource, work: Work, after: Iterable[int]
    ) -> int:
        """Appends a task and returns its index."""
        self.tasks.append(Task(kind, layer, micro_batch, resource, work, tuple(sorted({*after, *self._barrier}))))
        return len(self.tasks) - 1

    def synchronise(self) -> None:
        """Whatever is added from here on waits for all that has been added before: the last task of every queue."""
        last = {self.tasks[i].resource: i for i in range(self._step_begin, len(self.tasks))}
        if last:
            self._barrier, self._step_begin = tuple(last.values()), len(self.tasks)

    def wait_for(self, resource: Resource) -> None:
        """Whatever is added from here on to the end of the step waits for the tasks of one queue added in it so far."""
        found = [i for i in range(self._step_begin, len(self.tasks)) if self.tasks[i].resource == resource]
        self._barrier = (*self._barrier, *found[-1:])

    def begin_block(self) -> None:
        """Marks where the tasks of the next layer begin; the CPU's share of disk is read up to the one after it."""
        self.block_starts.append(len(self.tasks))
        layer = len(self.block_starts) - 1
        for following in range(layer + (layer > 0), min(layer + 2, self.num_layers)):
            self._read_host_share(following)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has weights that are paged."""
        return pages_ffn(self.sizes.model, self.sizes.model.layers[layer])

    def reads_dense(self, unit: int, reader: int | None = None) -> tuple[int, ...]:
        """What the first use of a layer's dense weights waits for; notes `reader` as their latest use."""
        if not self.streams_dense:
            return ()
        if reader is not None:
            self._unit_reader[unit] = reader
        return (self._unit_fetched[unit],) if unit in self._unit_fetched else ()

    def fetch_dense(self, unit: int) -> None:
        """Queues the streamed dense weights of all units up to `unit` (num_layers: LM head; one more: next pass)."""
        while self.streams_dense and self._next_unit <= min(unit, self.num_layers + 1):
            current, self._next_unit = self._next_unit, self._next_unit + 1
            ahead, head = current > self.num_layers, current == self.num_layers
            before = self._unit_reader.get(current - 2)
            self._unit_fetched[current] = self.add(
                Kind.HEAD_FETCH if head else Kind.DENSE_FETCH,
                self.num_layers - 1 if head else current % (self.num_layers + 1),
                None,
                Resource.HTOD,
                Work(share=1 - self.policy.dense_weights_on_gpu, ahead=ahead),
                () if before is None else (before,),
            )

    def wait_for_routing(self, routed: int) -> None:
        """From here on, pages are fetched only after `routed`, the router that asks for them."""
        self._routed = (routed,)

    def fetch_pages(self, end: int) -> None:
        """Queues fetches of the next pages up to number `end`, as far as their slots have a last reader by now."""
        plan = self.plan
        end = min(end, plan.per_pass + plan.ahead)
        while self._next_page < end:
            freed = self._next_page - plan.num_slots
            if freed >= 0 and freed not in self._page_reader:
                return
            self._fetch(self._next_page, () if freed < 0 else (self._page_reader[freed],))
            self._next_page += 1

    def _fetch(self, page: int, after: tuple[int, ...]) -> None:
        layer, ahead = self.plan.layer_of(page), page >= self.plan.per_pass
        work = Work(share=self.plan.share(page), pages=(page, page + 1), ahead=ahead)
        sources: tuple[int, ...] = self._routed
        if self.policy.weights_on_disk > 0:
            share = self._paged_disk_share(layer) / self.plan.per_layer[layer]
            sources = (self._source(Kind.WEIGHT_READ, Resource.DISK, layer, page, share, sources),)
        if self.policy.host_weights == "pageable":
            sources = (self._source(Kind.WEIGHT_STAGE, Resource.HOST, layer, page, work.share, sources),)
        self._fetched[page] = self.add(Kind.WEIGHT_FETCH, layer, None, Resource.HTOD, work, (*after, *sources))

    def _source(
        self, kind: Kind, resource: Resource, layer: int, page: int, share: float, after: tuple[int, ...] = ()
    ) -> int:
        """The step that brings a page to page-locked memory; its buffer is free once an earlier page has left it."""
        before = page - STAGING_BUFFERS * (self.plan.per_layer[layer] if kind == Kind.WEIGHT_READ else 1)
        freed = (self._fetched[before],) if before in self._fetched else ()
        work = Work(share=share, pages=(page, page + 1), ahead=page >= self.plan.per_pass)
        return self.add(kind, layer, None, resource, work, (*after, *freed))

    def _paged_disk_share(self, layer: int) -> float:
        """Share of a layer's experts that lies on disk and is copied to the GPU; the CPU computes the rest of it."""
        on_disk = self.policy.weights_on_disk
        return on_disk if self.experts_on_gpu == 1 else min(on_disk, self.plan.layer_share[layer])

    def _read_host_share(self, layer: int) -> None:
        """Reads the share of a layer on disk that the CPU computes, into one of two buffers."""
        share = self.policy.weights_on_disk - self._paged_disk_share(layer)
        if share > NO_SHARE and self.has_experts(layer):
            before = list(self._host_shares)[-STAGING_BUFFERS : -STAGING_BUFFERS + 1]
            freed = [self._host_reader[former] for former in before]
            self._host_shares[layer] = self.add(Kind.WEIGHT_READ, layer, None, Resource.DISK, Work(share=share), freed)

    def reads_host_share(self, layer: int) -> tuple[int, ...]:
        """What experts on the CPU wait for where a part of theirs lies on disk."""
        return (self._host_shares[layer],) if layer in self._host_shares else ()

    def note_host_reader(self, layer: int, reader: int) -> None:
        """Notes the latest task that computes a layer's experts on the CPU."""
        self._host_reader[layer] = reader

    def reads_pages(self, pages: range) -> tuple[int, ...]:
        """What an expert FFN on `pages` waits for: the last of their fetches (the copy queue is in order)."""
        fetched = [self._fetched[page] for page in pages if page in self._fetched]
        return (max(fetched),) if fetched else ()

    def note_reader(self, pages: range, reader: int) -> None:
        """Notes the latest task that reads `pages`; their slots are free after the last one."""
        for page in pages:
            self._page_reader[page] = reader

    def graph(self) -> TaskGraph:
        """The finished pass: whatever is still to fetch for the next pass comes last."""
        self.fetch_dense(self.num_layers + 1)
        self.fetch_pages(self.plan.per_pass + self.plan.ahead)
        return TaskGraph(
            self.policy.schedule, self.num_layers, self.slice, self.plan, tuple(self.tasks), tuple(self.block_starts)
        )

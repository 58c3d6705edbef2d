"""Where the runtime keeps weights and KV cache: nothing is lost, and nothing overwritten that is still to be read."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from fake_engine import TINY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runtime_policies import BATCH, HYBRID, POLICIES, RESIDENT, make_policy
from torch import Tensor
from torch.nn.functional import linear, silu

from hrm.errors import HrmError, PolicyError
from hrm.schedule.build import build_graph
from hrm.schedule.graph import TaskGraph
from hrm.schedule.pages import PagePlan
from hrm.schedule.slice import MicroBatch, PassSlice, decode_slice, interleave
from hrm.schedule.task import Kind, Resource, Task
from hrm.spec.policy import Policy
from runtime.carrying import carry_key, next_base, recount
from runtime.checkpoint.synthetic import SyntheticCheckpoint, synthetic_checkpoint
from runtime.kernels.expert_ffn import add_slabs, combine, sort_tokens
from runtime.layouts import PolicyLayout, layout_of
from runtime.memory.dense_weights import DenseWeights, lay_unit, resident_units, view_unit
from runtime.memory.expert_layout import GRANULES, ExpertLayout, Slab, by_expert, by_rows, page_borders, row_granule
from runtime.memory.host_buffer import _SPARE, HostBuffer, host_tensor, kept_mappings
from runtime.memory.host_weights import ExpertStore, load_experts, random_experts
from runtime.memory.kv_cache import BLOCK, BlockPool, KvPlan, block_bytes, blocks_of, make_kv_cache
from runtime.memory.paging import ALIGNMENT, Paging, aligned, lay_region, make_paging
from runtime.memory.ring import make_ring
from runtime.memory.slab_tensors import pack_expert, view_slab
from runtime.memory.staging import Staging, Upload, view_of
from runtime.models.config import ModelConfig
from runtime.sequences import make_table
from runtime.tasks.state import Carried

CPU = torch.device("cpu")
SHARES = st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0.0, 1.0)


@cache
def model(layers: int = 3) -> SyntheticCheckpoint:
    return synthetic_checkpoint({**TINY_CONFIG, "num_hidden_layers": layers}, dtype=torch.float32)


def config_of(rows: int, experts: int = 4, hidden: int = 8) -> ModelConfig:
    return replace(model().config, moe_intermediate_size=rows, num_experts=experts, hidden_size=hidden)


def all_slabs(layout: ExpertLayout) -> list[Slab]:
    return [layout.resident, *layout.streamed, *layout.on_cpu]


# --- how experts are cut


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ModelConfig, float, float, ExpertLayout]:
    rows = draw(st.integers(1, 90) | st.sampled_from([512, 768, 1024, 1408, 14336]))
    config = config_of(rows, draw(st.integers(1, 5)))
    on_gpu = draw(SHARES)
    resident = draw(st.just(on_gpu) | st.floats(0.0, 1.0).map(lambda share: share * on_gpu))
    if draw(st.booleans()):
        return config, resident, on_gpu, by_expert(config, resident, on_gpu)
    pages, cpu_pages = draw(st.integers(0, 40)), draw(st.integers(0, 9))
    return config, resident, on_gpu, by_rows(config, resident, on_gpu, pages, cpu_pages)


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_every_row_of_every_expert_lies_in_one_slab(case: tuple[ModelConfig, float, float, ExpertLayout]) -> None:
    config, _, _, layout = case
    covered = np.zeros((config.num_experts, config.moe_intermediate_size), int)
    for slab in all_slabs(layout):
        assert 0 <= slab.first_row <= slab.last_row <= config.moe_intermediate_size
        covered[slab.first_expert : slab.last_expert, slab.first_row : slab.last_row] += 1
    assert (covered == 1).all()
    assert layout.host == (*layout.streamed, *layout.on_cpu)


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_shares_are_met_to_a_granule(case: tuple[ModelConfig, float, float, ExpertLayout]) -> None:
    """Both shares are rounded down; borders lie on granules, and few on ones as fine as a row."""
    config, resident, on_gpu, layout = case
    rows = config.moe_intermediate_size
    borders = {row for slab in all_slabs(layout) for row in (slab.first_row, slab.last_row)}
    assert rows < 512 or rows % 8 or all(row % 8 == 0 for row in borders)
    granule = 1 if rows < 512 or rows % 8 else 32
    kept, computed = layout.resident.rows, layout.streamed[-1].last_row
    for share, found in ((resident, kept), (on_gpu, computed)):
        assert share * rows - granule * 1.0001 <= found <= share * rows + 1e-4 * granule
        assert share < 1 or found == rows
    if on_gpu == resident:
        assert not any(slab.rows for slab in layout.streamed)


@settings(max_examples=150, deadline=None)
@given(SHARES, SHARES, st.integers(1, 90) | st.sampled_from([768, 1408, 14336]), st.integers(1, 99), st.integers(1, 99))
def test_pages_differ_by_at_most_a_granule(a: float, b: float, rows: int, pages: int, prefill_pages: int) -> None:
    """Those of decode passes as those of passes that only prefill, which stream the CPU's rows too."""
    config, resident, on_gpu = config_of(rows), min(a, b), max(a, b)
    layout = by_rows(config, resident, on_gpu, pages, prefill_pages)
    streams = (layout.streamed, pages, on_gpu - resident), (layout.host, prefill_pages, 1 - resident)
    for slabs, count, share in streams:
        sizes = [sum(s.rows for s in slabs[i:j]) for i, j in pairwise(page_borders(slabs, count))]
        granule = row_granule(rows, share * rows / count)  # or a finer one, for the other pages' sake
        assert len(sizes) == count and max(sizes) - min(sizes) <= granule
        assert max(sizes) < share * rows / count + granule * 1.001


def test_granules_suit_the_pages() -> None:
    """Large pages are cut in large granules, small ones in small ones, tiny models to the row."""
    coarse, fine = GRANULES
    found = [row_granule(rows, rows / 8) for rows in (14336, 16384, 768, 1408, 480, 500, 1002)]
    assert found == [coarse] * 2 + [fine] * 2 + [1] * 3
    assert row_granule(14336, 100.0) == row_granule(8200, 8200) == fine


@pytest.mark.parametrize("share", [0.45, 0.31, 0.97])
@pytest.mark.parametrize("cut", ["rows", "expert"])
def test_equal_shares_stream_nothing(share: float, cut: str) -> None:
    """The page plan has no pages then, so a row left between the two roundings would never be computed."""
    config = config_of(48)
    layout = by_rows(config, share, share, 1, 3) if cut == "rows" else by_expert(config, share, share)
    assert sum(slab.rows for slab in layout.streamed) == 0
    assert sum(slab.rows for slab in layout.on_cpu) == 48 - layout.resident.rows


# --- slabs as matrices


def random_expert(config: ModelConfig, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    generator, i, h = torch.Generator().manual_seed(expert), config.moe_intermediate_size, config.hidden_size
    gate, up, down = (torch.randn(shape, generator=generator) for shape in ((i, h), (i, h), (h, i)))
    return gate, up, down


@settings(max_examples=40, deadline=None)
@given(layouts().filter(lambda case: case[0].moe_intermediate_size <= 90))
def test_slabs_add_up_to_plain_matmuls(case: tuple[ModelConfig, float, float, ExpertLayout]) -> None:
    """Packing and viewing are inverse, and the slabs of a layer compute what the experts do."""
    config, _, _, layout = case
    packed = []
    for slab in all_slabs(layout):
        memory = torch.empty(slab.elements(config.hidden_size) * 4 + 40, dtype=torch.uint8)
        view = view_slab(slab, memory, torch.float32, config.hidden_size)
        for expert in range(config.num_experts):
            pack_expert(view, expert, *random_expert(config, expert))
        packed.append(view_slab(slab, memory, torch.float32, config.hidden_size))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, config.hidden_size, generator=generator)
    top_k = min(2, config.num_experts)
    chosen = torch.rand(7, config.num_experts, generator=generator).topk(top_k).indices
    weights = torch.rand(7, top_k, generator=generator)
    tokens = sort_tokens(x, chosen, weights, config.num_experts)
    total = add_slabs(None, tokens, packed)
    assert total is not None
    torch.testing.assert_close(combine(total, tokens), plain_experts(config, x, chosen, weights), atol=1e-3, rtol=1e-4)


def plain_experts(config: ModelConfig, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t, k in np.ndindex(*chosen.shape):
        gate, up, down = random_expert(config, int(chosen[t, k]))
        out[t] += weights[t, k] * linear(silu(linear(x[t], gate)) * linear(x[t], up), down)
    return out


@pytest.mark.parametrize("on_gpu", [1.0, 0.6])
def test_loaded_experts_lie_where_the_layout_says(on_gpu: float) -> None:
    config = replace(config_of(48), moe_layers=(True, False, True))
    layout, seen = by_rows(config, 0.3, on_gpu, 3, 2), []

    def read(layer: int, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        return random_expert(config, layer * 10 + expert)

    store = load_experts(config, layout, read, CPU, False, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)] and set(store.host) == set(store.resident) == {0, 2}
    for layer in store.host:
        for slab, view in slabs_of(store, layer):
            for expert in range(config.num_experts):
                gate, up, down = random_expert(config, layer * 10 + expert)
                rows = slice(slab.first_row, slab.last_row)
                assert torch.equal(view.gate_up[expert], torch.cat((gate[rows], up[rows])))
                assert torch.equal(view.down[expert], down[:, rows])
    assert [s.slab for s in store.cpu_slabs(0)] == [slab for slab in layout.on_cpu if slab.rows]


def slabs_of(store: ExpertStore, layer: int) -> Iterator[tuple[Slab, object]]:
    yield store.layout.resident, store.resident[layer]
    memory = store.host_bytes(layer)
    for slab, start in zip(store.layout.host, store.region.starts, strict=False):
        yield slab, view_slab(slab, memory[start:], store.dtype, store.hidden_size)


def test_random_experts_fill_all_memory() -> None:
    config = config_of(48)
    layout = by_rows(config, 0.5, 0.75, 2, 1)
    store = random_experts(config, layout, 0, CPU, False, 2)
    for layer in range(3):
        assert len(store.host_bytes(layer)) == store.region.nbytes
        for _, view in slabs_of(store, layer):
            assert float(view.gate_up.std()) > 0 and float(view.gate_up.abs().max()) < 10


# --- pages


@st.composite
def pagings(draw: st.DrawFn) -> Paging:
    """Slabs of some layout in CPU memory, and a plan that streams them in some layers."""
    _, _, _, layout = draw(layouts())
    region = lay_region(layout.host, 8, 2)
    pages, some = draw(st.integers(1, 12)), draw(st.lists(st.booleans(), min_size=1, max_size=5))
    per_layer = tuple(pages if streams else 0 for streams in [*some, True])
    slots = draw(st.integers(1, sum(per_layer)))
    plan = PagePlan(per_layer, (0.5,) * len(per_layer), slots, slots - 1)
    return make_paging(plan, region, draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(pagings(), st.integers(0, 50))
def test_every_byte_of_a_region_is_in_one_page(paging: Paging, passes: int) -> None:
    """And at the place in the pool at which the slabs of the page are looked for, inside the pool."""
    base = passes * paging.plan.per_pass
    for layer, count in enumerate(paging.plan.per_layer):
        pages, at = paging.plan.of_layer(layer), 0
        assert len(pages) == count
        for page in pages:
            for piece in paging.pieces(page, base):
                assert (piece.layer, piece.start) == (layer, at) and piece.stop >= piece.start
                assert piece.pool_start >= 0 and piece.pool_start + piece.stop - piece.start <= paging.pool_bytes
                assert piece.pool_start % ALIGNMENT == 0
                at = piece.stop
        assert not count or at == paging.region.nbytes
        assert not count or [p.slab for p in paging.slabs(pages, base)] == list(paging.region.slabs)


@settings(max_examples=100, deadline=None)
@given(pagings().filter(lambda paging: not paging.double_buffer), st.integers(0, 5))
def test_pages_of_a_ring_hold_whole_slabs(paging: Paging, passes: int) -> None:
    base = passes * paging.plan.per_pass
    for page in range(paging.plan.per_pass):
        pieces, slabs = paging.pieces(page, base), paging.slabs(range(page, page + 1), base)
        assert [p.pool_start for p in pieces] == [s.pool_start for s in slabs]
        assert [p.stop - p.start for p in pieces] == [aligned(s.slab.elements(8) * 2) for s in slabs]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(1, 30), st.integers(1, 5))
def test_consecutive_pages_of_a_ring_do_not_overlap(sizes: list[int], slots: int, unit: int) -> None:
    """As many as it has slots; and it takes no more than slots of the largest, or a page more than they take."""
    sizes = [unit * size for size in sizes]
    ring, pages = make_ring(tuple(sizes), slots), len(sizes)
    held = [0] * ring.nbytes
    for number in range(3 * (slots + pages) + min(ring.period, 200)):
        start = ring.start(number)
        assert start == ring.start(number + ring.period) and ring.period % pages == 0
        assert start + sizes[number % pages] <= ring.nbytes
        held[start : start + sizes[number % pages]] = [number] * sizes[number % pages]
        for live in range(max(0, number - slots + 1), number):
            assert set(held[ring.start(live) :][: sizes[live % pages]]) <= {live}
    most = max(sum(sizes[(i + k) % pages] for k in range(slots)) for i in range(pages))
    assert ring.nbytes <= min(slots * max(sizes), most + max(sizes))
    if slots % pages == 0:
        assert ring.nbytes == most


class Pool:
    """A page pool that remembers which byte of which layer lies at each of its bytes."""

    def __init__(self, layout: PolicyLayout) -> None:
        self.layout, self.carried, self.carried_for = layout, Carried(), None
        self.bytes: NDArray[np.int64] = np.full(layout.pool_bytes(), -1)
        self.checked = 0

    def run(self, work: PassSlice, eager: bool) -> None:
        """One pass, as PassRunner does it; `eager`: copies run as far ahead as the graph allows, or as late."""
        graph = build_graph(self.layout.sizes, work, self.layout.policy)
        paging = self.layout.paging(graph.pages, work.decodes)
        if self.carried_for != (key := carry_key(paging)):
            self.carried = Carried()
            for page in range(paging.plan.ahead):
                self.fetch(paging, page)
        elif paging.double_buffer and self.carried.per_layer != paging.per_layer:
            recount(self.carried, paging)
        for i in order_of(graph, eager):
            self.perform(paging, graph.tasks[i])
        base = next_base(paging, self.carried.base) if paging.per_layer else 0
        self.carried, self.carried_for = Carried(base, paging.per_layer), key

    def perform(self, paging: Paging, task: Task) -> None:
        if task.kind == Kind.WEIGHT_FETCH:
            self.fetch(paging, task.work.pages[0])
        elif task.kind == Kind.EXPERT_FFN and (pages := range(*task.work.pages)):
            self.read(paging, task.layer, pages)

    def fetch(self, paging: Paging, page: int) -> None:
        for piece in paging.pieces(page, self.carried.base):
            tags = piece.layer * 2**40 + np.arange(piece.start, piece.stop)
            self.bytes[piece.pool_start : piece.pool_start + len(tags)] = tags

    def read(self, paging: Paging, layer: int, pages: range) -> None:
        """Every slab has to be there, whole, and the layer's own."""
        found = dict(zip(paging.region.slabs, paging.region.starts, strict=False))
        for placed in paging.slabs(pages, self.carried.base):
            size = placed.slab.elements(model().config.hidden_size) * 4
            tags = layer * 2**40 + found[placed.slab] + np.arange(size)
            assert np.array_equal(self.bytes[placed.pool_start : placed.pool_start + size], tags)
            self.checked += 1


def order_of(graph: TaskGraph, eager: bool) -> Iterator[int]:
    """An order in which the tasks may run: copies of weights whenever they can, or only when nothing else can."""
    queues = {r: list(q) for r, q in graph.queues.items()}
    ranks = sorted(queues, key=lambda r: (r not in (Resource.HTOD, Resource.HOST)) == eager)
    done: set[int] = set()
    while len(done) < len(graph.tasks):
        ready = (queues[r][0] for r in ranks if queues[r] and done.issuperset(graph.tasks[queues[r][0]].after))
        i = next(ready)
        queues[graph.tasks[i].resource].pop(0)
        done.add(i)
        yield i


def slices(name: str, random: np.random.Generator) -> Iterator[PassSlice]:
    """Prompts first, then passes of ever other numbers of sequences; with mixing, prompts among them."""
    policy = POLICIES[name]
    prefill = MicroBatch(prompt_tokens=9, prompts=1.0, prompt_len=9.0, prompt_len_sq=81.0)
    yield PassSlice((prefill,) * int(random.integers(1, 4)))
    for _ in range(6):
        decode = decode_slice(policy, 8.0, int(random.integers(1, policy.batch_size + 1))).micro_batches
        more = (prefill,) * int(random.integers(0, 3)) if policy.mixed_prefill else ()
        yield PassSlice(interleave(decode, more))
        if not policy.mixed_prefill and random.random() < 0.25:
            yield PassSlice((prefill,) * int(random.integers(1, 4)))


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if not policy.caches_whole_experts])
def test_no_page_is_overwritten_before_it_is_read(name: str) -> None:
    """Passes of changing size one after the other, the earliest and the latest copies that their graphs allow."""
    pool, random = Pool(layout_of(model(), POLICIES[name])), np.random.default_rng(0)
    for work in slices(name, random):
        pool.run(work, eager=bool(random.integers(0, 2)))
    streams = POLICIES[name].experts_on_gpu > POLICIES[name].weights_on_gpu
    assert (pool.checked > 0) == streams or POLICIES[name].experts_on_gpu == 0


@pytest.mark.parametrize("share", [0.45, 0.004])
@pytest.mark.parametrize("schedule", ["cgopipe", "auto"])
def test_policies_that_stream_nothing_or_next_to_nothing(schedule: str, share: float) -> None:
    place = {"attention_place": "hybrid"} if schedule == "auto" else {}
    policy = make_policy(schedule, 2, 2, experts_on_gpu=share, weights_on_gpu=share if share > 0.1 else 0.0, **place)
    pool = Pool(layout_of(model(), policy))
    for work in (PassSlice((MicroBatch(1, 0, 4.0),)), decode_slice(policy, 8.0), decode_slice(policy, 9.0)):
        pool.run(work, eager=True)


# --- what the pool takes on the GPU

FAMILIES = ("mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b")
PLACES = [(1.0, 0.0), (1.0, 0.13), (1.0, 0.5), (1.0, 0.87)]
PLACES += [(0.6, 0.0), (0.5, 0.1), (0.3, 0.3), (0.97, 0.9), (0.02, 0.0)]
POOLS = (1e8, 3e8, 1e9, 1.7e9, 4e9, 12e9)
real_model = cache(synthetic_checkpoint)


def layer_bytes(name: str) -> float:
    config = real_model(name).config
    return 3.0 * config.num_experts * config.moe_intermediate_size * config.hidden_size * config.dtype.itemsize


def laid_out(name: str, policy: Policy) -> PolicyLayout | None:
    """None: the schedule itself refuses the policy, such as a pool below two pages."""
    try:
        return layout_of(real_model(name), policy)
    except PolicyError:
        return None


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("schedule", ["module_batched", "auto"])
def test_a_ring_keeps_to_the_policys_pool(name: str, schedule: str) -> None:
    """Beyond it: less than what is not resident because shares are rounded down, and a few granules."""
    config, place = real_model(name).config, HYBRID if schedule == "auto" else {}
    row, seen = layer_bytes(name) / config.moe_intermediate_size, 0
    for (on_gpu, resident), pool in product(PLACES[: 4 if schedule == "module_batched" else None], POOLS):
        shares = {"experts_on_gpu": on_gpu, "weights_on_gpu": resident, "page_pool_bytes": pool}
        layout = laid_out(name, make_policy(schedule, 3, 3, **BATCH, **place, **shares))
        if layout is not None:
            seen += 1
            less = row * (resident * config.moe_intermediate_size - layout.experts.resident.rows)
            assert layout.pool_bytes() <= 1.05 * pool + 24 * row, (on_gpu, resident, pool)
            assert layout.pool_bytes() <= pool + less * config.num_layers + 32 * row, (on_gpu, resident, pool)
    assert seen > 10


@pytest.mark.parametrize("name", FAMILIES)
def test_a_double_buffer_takes_two_layers(name: str) -> None:
    granule = layer_bytes(name) / real_model(name).config.moe_intermediate_size * 32
    for on_gpu, resident in PLACES:
        policy = make_policy("cgopipe", 3, 3, experts_on_gpu=on_gpu, weights_on_gpu=resident)
        layout = layout_of(real_model(name), policy)
        assert layout.pool_bytes() <= 2 * ((1 - resident) * layer_bytes(name) + granule + 2 * ALIGNMENT)


@pytest.mark.parametrize("name", FAMILIES)
def test_demand_fetched_experts_take_a_layer_however_many_pages(name: str) -> None:
    for on_gpu, resident in PLACES:
        policy = make_policy("expert_cache", 4, 1, **RESIDENT, experts_on_gpu=on_gpu, weights_on_gpu=resident)
        layout = layout_of(real_model(name), policy)
        assert layout.pool_bytes() <= (1 - resident + 0.02) * layer_bytes(name) + ALIGNMENT * 200
        for decodes in (False, True):
            for pages in range(1, min(real_model(name).config.num_experts, 32) + 1):
                plan = PagePlan((pages,) * 3, (0.5,) * 3, pages, 0)
                assert layout.paging(plan, decodes).pool_bytes <= layout.pool_bytes()


# --- other weights


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_resident_units_keep_to_their_share(sizes: list[int], share: float) -> None:
    chosen = resident_units(sizes, share)
    kept, seen = np.cumsum([s * c for s, c in zip(sizes, chosen, strict=True)]), np.cumsum(sizes)
    assert (kept <= share * seen * (1 + 1e-6) + 1e-9).all()
    assert share * seen[-1] - kept[-1] <= max(sizes) * (1 + 1e-6)  # not even one more unit would fit
    assert all(resident_units(sizes, 1.0))
    assert sum(s for s, c in zip(sizes, resident_units(sizes, 0.0), strict=True) if c) == 0


def test_equal_units_are_spread_evenly() -> None:
    assert resident_units([7] * 8, 0.5) == [False, True] * 4


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("units", [2, 3, 4])
def test_streamed_units_alternate_between_two_buffers(share: float, units: int) -> None:
    """Over several passes: unit u + 1 is fetched while u is in use, the next pass's first behind the last."""
    shapes = {"q": (4, 6), "k": (2, 6), "v": (2, 6), "norm": (6,)}
    dense = DenseWeights([lay_unit(shapes, 4)] * units, share, torch.float32, CPU)
    for unit in range(units):
        dense.load(unit, lambda name, shape, unit=unit: torch.full(shape, 10.0 * unit + len(name)), lock=False)
    dense.fetch(0)
    for _ in range(5):
        for unit in range(units):
            dense.fetch(unit + 1)
            found = dense.tensors(unit)
            assert all(bool((found[name] == 10.0 * unit + len(name)).all()) for name in shapes)
        dense.next_pass()
    size = lay_unit(shapes, 4).nbytes
    assert dense.streamed_bytes == size * dense.resident.count(False)
    assert dense.gpu_bytes == size * (dense.resident.count(True) + (2 if share < 1 else 0))


def test_projections_side_by_side_are_seen_as_one() -> None:
    whole = lay_unit({"q": (8, 64), "k": (4, 64), "v": (4, 64), "q_bias": (8,), "k_bias": (4,), "v_bias": (4,)}, 4)
    memory = torch.randint(0, 50, (whole.nbytes,), dtype=torch.uint8)
    found = view_unit(whole, memory, torch.float32)
    assert torch.equal(found["qkv"], torch.cat([found[name] for name in "qkv"]))
    assert "qkv_bias" not in found  # padding lies between
    assert all(start % ALIGNMENT == 0 for start in whole.starts.values())


# --- the KV cache


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.data())
def test_no_block_is_handed_out_twice(num_blocks: int, data: st.DataObject) -> None:
    pool, held = BlockPool(num_blocks), []
    for _ in range(data.draw(st.integers(0, 30))):
        if held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            held.append(pool.allocate(data.draw(st.integers(0, num_blocks - pool.used))))
        out = [int(block) for blocks in held for block in blocks]
        assert len(set(out)) == len(out) == pool.used and set(out) <= set(range(num_blocks))
    with pytest.raises(AssertionError, match="KV cache"):
        pool.allocate(num_blocks - pool.used + 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=6), st.data())
def test_sequences_hold_the_blocks_of_their_tokens(sequences: list[tuple[int, bool]], data: st.DataObject) -> None:
    count = len(sequences)
    table, pools = make_table(count, 200, 1), {"host": BlockPool(80), "gpu": BlockPool(80)}
    table.active[:], table.on_gpu[:] = True, [on_gpu for _, on_gpu in sequences]
    lengths = np.zeros(count, np.int64)
    for _ in range(3):
        some = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
        more = np.array([data.draw(st.integers(0, sequences[i][0])) for i in some])
        table.reserve(some, more, pools)
        lengths[some] += more
        assert table.cached.tolist() == lengths.tolist()
        for name, mine in (("gpu", table.on_gpu), ("host", ~table.on_gpu)):
            held = [b for slot in np.flatnonzero(mine) for b in table.table[slot, : blocks_of(int(lengths[slot]))]]
            assert len(set(held)) == len(held) == pools[name].used


def test_kv_cache_has_both_pools_in_every_layer() -> None:
    config = model().config
    cache = make_kv_cache(config, KvPlan(5, 3, False), CPU, 2)
    shape = (2, config.num_key_value_heads, BLOCK, config.head_dim)
    assert [tuple(t.shape) for t in cache.host] == [(5, *shape)] * 3
    assert [tuple(t.shape) for t in cache.gpu] == [(3, *shape)] * 3
    assert cache.host_bytes == 15 * block_bytes(config) and cache.gpu_bytes == 9 * block_bytes(config)
    assert cache.host_words == [] and {n: p.num_blocks for n, p in cache.pools.items()} == {"host": 5, "gpu": 3}
    empty = make_kv_cache(config, KvPlan(0, 0, False), CPU, 1)
    assert empty.host_bytes == empty.gpu_bytes == 0


# --- CPU memory


def test_mappings_serve_later_buffers_while_that_is_asked_for() -> None:
    """Of nearly the same size; touched again they hold zeros; afterwards nothing is kept."""
    with kept_mappings():
        first = HostBuffer(100_000)
        place = first.bytes.data_ptr()
        first.bytes.fill_(7)
        del first
        again = HostBuffer(90_000)
        assert again.bytes.data_ptr() == place and again.bytes.tolist() == [7] * 90_000
        again.touch(2)
        assert not again.bytes.any()
        other = HostBuffer(90_000)
        assert other.bytes.data_ptr() != place
        del again
        large = HostBuffer(1_000_000)  # nothing fits: what is kept is given up
        assert large.nbytes == 1_000_000 and not _SPARE._mappings
        del other
        assert len(_SPARE._mappings) == 1
        assert HostBuffer(20_000).bytes.numel() == 20_000 and not _SPARE._mappings[:-1]
    assert not _SPARE._mappings
    del large
    assert not _SPARE._mappings


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 200_000])
def test_host_buffer_holds_its_bytes(nbytes: int) -> None:
    buffer = HostBuffer(nbytes)
    buffer.touch(3)
    assert len(buffer.bytes) == nbytes and not buffer.locked and not buffer.bytes.any()
    buffer.bytes.fill_(7)
    assert int(buffer.bytes.sum()) == 7 * nbytes


def test_memory_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(HrmError, match="cannot map 4,611,686,018,427,387,904 bytes"):
        HostBuffer(1 << 62)


def test_host_tensor_is_a_view_of_its_buffer() -> None:
    tensor, buffer = host_tensor((3, 5), torch.float32, lock=False)
    tensor.fill_(1.5)
    assert tensor.shape == (3, 5) and bool((buffer.bytes.view(torch.float32) == 1.5).all())


def test_staging_keeps_what_is_written_and_grows() -> None:
    staging = Staging(CPU)
    assert staging.nbytes == 0
    for count in (3, 5000, 20):
        staging.host((count, 2), torch.float32).copy_(torch.arange(count * 2).view(count, 2))
        for by_kernel in (False, True):
            out = torch.empty(count, 2)
            staging.load(out, by_kernel)
            assert torch.equal(out, torch.arange(count * 2.0).view(count, 2))
    assert 40_000 < staging.nbytes <= 45_008  # it had to grow, and took an eighth more
    exact = Staging(CPU)
    exact.host((5000, 2), torch.float32)
    assert exact.nbytes == 40_000
    assert staging.host((0, 4), torch.bfloat16).shape == (0, 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=6))
def test_arrays_sent_together_come_apart_again(shapes: list[list[int]]) -> None:
    upload, random = Upload(), np.random.default_rng(0)
    arrays = [random.integers(-9, 9, shape) for shape in shapes]
    places = [upload.add(array) for array in arrays]
    sent = upload.send(Staging(CPU), CPU)
    assert all(np.array_equal(view_of(sent, place), array) for place, array in zip(places, arrays, strict=True))


def test_a_buffer_may_be_dropped_while_another_is_made():
    """As the collector does, in the thread that holds the lock: once a run hung there."""
    buffer = HostBuffer(5000)

    def drops() -> None:
        with _SPARE._lock:
            buffer.__del__()

    thread = threading.Thread(target=drops, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()

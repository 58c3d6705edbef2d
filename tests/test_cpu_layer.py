"""A layer's experts on the CPU and their sums, against plain PyTorch in fp64."""

import pytest
import torch
from torch import Tensor

from runtime.kernels import cpu_combine, cpu_layer
from runtime.kernels.compile import find_compiler
from runtime.kernels.cpu_combine import combine_experts
from runtime.kernels.expert_mlp import expert_mlp
from runtime.memory.expert_layout import Slab
from runtime.memory.scratch import Scratch
from runtime.memory.slab_tensors import SlabTensors

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
COMPILED = [pytest.param(True, marks=needs_compiler), False]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 0.03}
E, K, H, ROWS = 6, 2, 40, 48


def experts_of(dtype: torch.dtype, slabs: list[Slab]) -> tuple[Tensor, Tensor, list[SlabTensors]]:
    """gate_up [E, 2 I, H] and down [E, H, I] of whole experts, and the slabs' parts of them."""
    generator = torch.Generator().manual_seed(3)
    gate_up = (torch.randn(E, 2 * ROWS, H, generator=generator) * H**-0.5).to(dtype)
    down = (torch.randn(E, H, ROWS, generator=generator) * ROWS**-0.5).to(dtype)
    parts = []
    for slab in slabs:
        own, rows = slice(slab.first_expert, slab.last_expert), slice(slab.first_row, slab.last_row)
        gate, up = gate_up[own, :ROWS][:, rows], gate_up[own, ROWS:][:, rows]
        parts.append(SlabTensors(slab, torch.cat([gate, up], dim=1), down[own, :, rows].contiguous()))
    return gate_up, down, parts


def wanted(x: Tensor, chosen: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor, slabs: list[Slab]) -> Tensor:
    """In fp64, token by token."""
    out = torch.zeros(len(x), H, dtype=torch.float64)
    for slab in slabs:
        rows = [*range(slab.first_row, slab.last_row)]
        for t, (experts, weights) in enumerate(zip(chosen.tolist(), gates.tolist(), strict=True)):
            for expert, weight in zip(experts, weights, strict=True):
                if slab.first_expert <= expert < slab.last_expert:
                    part = gate_up[expert].double()[[*rows, *(ROWS + r for r in rows)]]
                    out[t] += weight * expert_mlp(x[t : t + 1].double(), part, down[expert].double()[:, rows])[0]
    return out


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 9, 61], ids=["one token", "few rows each", "many rows each"])
@pytest.mark.parametrize(
    "slabs",
    [
        [Slab(0, E, 0, ROWS)],
        [Slab(0, E, 8, 16), Slab(0, E, 16, 40), Slab(0, E, 40, 48)],
        [Slab(1, 4, 0, ROWS)],
        [Slab(5, 6, 0, ROWS), Slab(2, 3, 0, 8)],
    ],
    ids=["whole", "three parts", "some experts", "single experts"],
)
def test_like_plain_pytorch(dtype: torch.dtype, tokens: int, slabs: list[Slab]) -> None:
    """Whatever the slabs hold, and with scratch memory that an earlier call left full."""
    gate_up, down, parts = experts_of(dtype, slabs)
    scratch = Scratch()
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(tokens, H, generator=generator).to(dtype)
        chosen = torch.rand(tokens, E, generator=generator).topk(K).indices
        gates = torch.rand(tokens, K, generator=generator)
        out = torch.full_like(x, torch.nan)
        cpu_layer.cpu_layer(x, chosen, gates, E, parts, out, scratch)
        expected = wanted(x, chosen, gates, gate_up, down, slabs)
        torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("slabs", [[Slab(0, E, 0, ROWS)], [Slab(0, E, 0, 8), Slab(0, E, 8, ROWS)]], ids=["one", "two"])
def test_balanced_experts_go_in_one_product(
    dtype: torch.dtype, slabs: list[Slab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded, and with no expert taken on its own."""
    monkeypatch.setattr(cpu_layer, "_one_by_one", None)
    gate_up, down, parts = experts_of(dtype, slabs)
    x = torch.randn(170, H).to(dtype)
    chosen = (torch.arange(170)[:, None] + torch.tensor([0, 3])) % E
    gates, out = torch.rand(170, K), torch.full_like(x, torch.nan)
    cpu_layer.cpu_layer(x, chosen, gates, E, parts, out, Scratch())
    expected = wanted(x, chosen, gates, gate_up, down, slabs)
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_many_tokens_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which changes nothing."""
    _, _, parts = experts_of(torch.float32, [Slab(0, E, 0, ROWS)])
    x, chosen, gates = torch.randn(50, H), torch.randint(0, E, (50, K)), torch.rand(50, K)
    whole, blocks = torch.empty_like(x), torch.full_like(x, torch.nan)
    cpu_layer.cpu_layer(x, chosen, gates, E, parts, whole, Scratch())
    monkeypatch.setattr(cpu_layer, "BLOCK_BYTES", 7 * K * H * 4)
    cpu_layer.cpu_layer(x, chosen, gates, E, parts, blocks, Scratch())
    torch.testing.assert_close(blocks, whole)


def test_one_expert_gets_all_tokens() -> None:
    """Experts without tokens are skipped."""
    gate_up, down, parts = experts_of(torch.float32, [Slab(0, E, 0, ROWS)])
    x, chosen, gates = torch.randn(20, H), torch.full((20, 1), 3), torch.ones(20, 1)
    out = torch.empty_like(x)
    cpu_layer.cpu_layer(x, chosen, gates, E, parts, out, Scratch())
    torch.testing.assert_close(out, expert_mlp(x, gate_up[3], down[3]))


def test_nothing_to_compute_gives_zero() -> None:
    """A layer of which the CPU has no rows."""
    x = torch.randn(4, H)
    out = torch.full_like(x, torch.nan)
    cpu_layer.cpu_layer(x, torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2), E, [], out, Scratch())
    assert not out.any()


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("hidden", [1, 15, 64, 100])
def test_sums(compiled: bool, dtypes: tuple[torch.dtype, torch.dtype], hidden: int) -> None:
    """Any width, rows taken more than once or never."""
    generator = torch.Generator().manual_seed(hidden)
    parts = torch.randn(3, 7, hidden, generator=generator).to(dtypes[0])
    rows = torch.randint(0, 7, (5, 2), generator=generator)
    weights = torch.rand(5, 2, generator=generator)
    out = torch.full((5, hidden), torch.nan, dtype=dtypes[1])
    combine_experts(parts, rows, weights, out, 2, compiled)
    expected = torch.einsum("stkh,tk->th", parts[:, rows].double(), weights.double())
    torch.testing.assert_close(out.double(), expected, rtol=0.01, atol=0.01)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's operations take over."""
    monkeypatch.setattr(cpu_combine, "_load", lambda: (None, "no compiler"))
    out = torch.empty(1, 4)
    combine_experts(torch.ones(1, 2, 4), torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.5]]), out, 1)
    assert out.tolist() == [[0.75] * 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([[0, 2]])}, "rows from 0 to 2: there are 2"),
        ({"rows": torch.tensor([[0, -1]])}, "rows from -1 to 0"),
        ({"rows": torch.tensor([[0, 1]], dtype=torch.int32)}, "int64 rows"),
        ({"weights": torch.ones(2, 1)}, r"expected \[S, R, H\]"),
        ({"out": torch.empty(1, 8)[:, ::2]}, "contiguous"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    """Tensors that do not fit, before their memory is touched."""
    fitting = {"parts": torch.ones(1, 2, 4), "rows": torch.tensor([[0, 1]]), "weights": torch.ones(1, 2)}
    arguments: dict[str, object] = {**fitting, "out": torch.empty(1, 4), "threads": 1, **change}
    with pytest.raises(ValueError, match=message):
        combine_experts(**arguments)  # type: ignore[arg-type]

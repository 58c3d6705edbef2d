"""Experts with few tokens on the CPU: both backends against fp64 and `expert_mlp`, on several instruction sets."""

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn.functional import silu  # noqa: E402

from runtime.kernels import cpu_experts, expert_ffn  # noqa: E402
from runtime.kernels.compile import FLAGS, build_library, find_compiler, processor  # noqa: E402
from runtime.kernels.cpu_experts import (  # noqa: E402
    SOURCE,
    addresses,
    build_failure,
    experts_backend,
    few_token_experts,
)
from runtime.kernels.expert_ffn import add_slabs, sort_tokens  # noqa: E402
from runtime.kernels.expert_mlp import expert_mlp  # noqa: E402
from runtime.memory.expert_layout import Slab  # noqa: E402
from runtime.memory.slab_tensors import SlabTensors  # noqa: E402

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
BACKENDS = [pytest.param("compiled", marks=needs_compiler), "torch"]
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}  # relative, of one number
SHAPES = [(40, 24), (64, 32), (8, 8), (136, 72), (17, 3), (1, 1), (200, 520)]  # H, I
TOP_K = 3


@dataclass
class Case:
    """Arguments of a call, and the experts' matrices [I or 2 I, ...]."""

    arguments: dict[str, Any]
    experts: list[tuple[Tensor, Tensor]]
    counts: list[int]

    def exact(self, expert: Any) -> Tensor:
        """Rows of `out` by expert(x, gate_up, down); NaN where nothing is to be written."""
        x, pairs, wanted = (
            self.arguments["x"],
            self.arguments["pairs"],
            torch.full_like(self.arguments["out"], torch.nan),
        )
        rows = torch.from_numpy(pairs).split(self.counts)
        for chosen, matrices in zip(rows, self.experts, strict=True):
            if len(chosen):
                wanted[chosen] = expert(x[chosen // TOP_K], *matrices).float()
        return wanted


def exact_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x.double() @ gate_up.double().T).chunk(2, -1)
    return (silu(gate) * up) @ down.double().T


def make_case(H: int, I: int, counts: list[int], dtype: torch.dtype, size: float = 1) -> Case:  # noqa: E741
    """Random numbers; expert matrices lie one after the other, at odd addresses of a slab."""
    torch.manual_seed(H * I + sum(counts))
    tokens = -(-sum(counts) // TOP_K) + 1
    slab = torch.randn(1 + len(counts) * 3 * I * H)
    slab = (slab * size * H**-0.5).to(dtype)
    parts = slab[1:].view(len(counts), 3 * I * H)
    experts = [(part[: 2 * I * H].view(2 * I, H), part[2 * I * H :].view(H, I)) for part in parts]
    arguments = {
        "x": torch.randn(tokens, H).to(dtype),
        "pairs": torch.randperm(tokens * TOP_K)[: sum(counts)].numpy(),
        "starts": np.cumsum([0, *counts]),
        "weights": np.array([addresses(*matrices) for matrices in experts], dtype=np.int64).reshape(-1, 2),
        "intermediate": I,
        "out": torch.full((tokens * TOP_K, H), torch.nan),
    }
    return Case(arguments, experts, counts)


def run(case: Case, backend: str = "auto", threads: int = 2) -> Tensor:
    few_token_experts(**case.arguments, threads=threads, backend=backend)
    return case.arguments["out"]


def assert_close(case: Case, out: Tensor, wanted: Tensor, roundings: float) -> None:
    """Within so many roundings of the largest number of `wanted`; the same rows written."""
    assert torch.equal(out.isnan(), wanted.isnan())
    largest = wanted.nan_to_num().abs().max().item()
    assert (out - wanted).nan_to_num().abs().max().item() <= roundings * ROUNDING[case.arguments["x"].dtype] * largest


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_close_to_fp64(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = make_case(*shape, [1, 0, 2, 3, 4, 5, 0, 9], dtype)
    assert_close(case, run(case, backend), case.exact(exact_mlp), 16)


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@needs_compiler
def test_like_expert_mlp(dtype: torch.dtype, rows: int) -> None:
    case = make_case(40, 24, [rows], dtype)
    assert_close(case, run(case, "compiled"), case.exact(expert_mlp), 16)


def test_fallback_is_expert_mlp() -> None:
    case = make_case(40, 24, [3, 0, 1], torch.bfloat16)
    assert torch.equal(run(case, "torch").nan_to_num(), case.exact(expert_mlp).nan_to_num())


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_does_not_change_a_bit(threads: int) -> None:
    case = make_case(520, 264, [1, 2, 0, 7] * 3, torch.bfloat16)
    first = run(case, "compiled", 1).clone()
    case.arguments["out"].fill_(torch.nan)
    assert torch.equal(first.nan_to_num(), run(case, "compiled", threads).nan_to_num())


@needs_compiler
def test_scratch_of_a_larger_call_leaves_nothing() -> None:
    for shape, counts in (((200, 100), [9, 9]), ((40, 24), [2]), ((33, 9), [1, 3])):
        case = make_case(*shape, counts, torch.bfloat16)
        case.arguments["x"][0] = torch.nan
        case.arguments["pairs"] = np.where(case.arguments["pairs"] < TOP_K, -1, case.arguments["pairs"])
        kept = case.arguments["pairs"] >= 0
        owner = np.repeat(np.arange(len(counts)), counts)[kept]
        case.counts = np.bincount(owner, minlength=len(counts)).tolist()
        case.arguments["pairs"], case.arguments["starts"] = case.arguments["pairs"][kept], np.cumsum([0, *case.counts])
        assert_close(case, run(case, "compiled"), case.exact(exact_mlp), 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_gates_do_not_overflow(backend: str) -> None:
    case = make_case(64, 32, [2, 3], torch.float32, size=300)
    assert_close(case, run(case, backend), case.exact(exact_mlp), 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend: str) -> None:
    case = make_case(40, 24, [4], torch.bfloat16)
    case.arguments["pairs"] = np.array([0, 3, 1, 2])
    case.arguments["x"][1, 7] = torch.nan
    out = run(case, backend)
    assert out[:3].isfinite().all() and out[3].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("counts", [[], [0, 0]], ids=str)
def test_no_rows(backend: str, counts: list[int]) -> None:
    assert run(make_case(40, 24, counts, torch.float32), backend).isnan().all()


def test_lists_may_be_tensors() -> None:
    case = make_case(40, 24, [2, 3], torch.float32)
    first = run(case).clone()
    for name in ("pairs", "starts", "weights"):
        case.arguments[name] = torch.from_numpy(case.arguments[name])
    assert torch.equal(first.nan_to_num(), run(case).nan_to_num())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
@needs_compiler
def test_other_instruction_sets(march: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if march == "x86-64-v3" and not {"avx2", "fma", "f16c"} <= set(processor().split()):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = build_library(SOURCE, ("-O1", f"-march={march}", *FLAGS[2:]))
    assert build.library is not None, build.failure
    library = ctypes.CDLL(str(build.library))
    monkeypatch.setattr(cpu_experts, "_load", lambda: (library, ""))
    for dtype in ROUNDING:
        for shape in SHAPES:
            case = make_case(*shape, [1, 0, 2, 3, 9], dtype)
            assert_close(case, run(case, "compiled"), case.exact(exact_mlp), 16)


def test_without_a_compiler_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu_experts, "_load", cpu_experts._load.__wrapped__)
    assert experts_backend() == "torch" and "no C++ compiler" in build_failure()
    case = make_case(40, 24, [2], torch.float32)
    assert_close(case, run(case), case.exact(exact_mlp), 16)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        run(case, "compiled")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 40, dtype=torch.float64)}, "float64"),
        ({"x": torch.zeros(3, 80)[:, ::2]}, "x is .* contiguous"),
        ({"x": torch.zeros(2, 40)}, r"expected \[T, H\], \[T k, H\]"),
        ({"out": torch.zeros(9, 40).half()}, "out .*float16"),
        ({"out": torch.zeros(9, 8)}, "out "),
        ({"pairs": np.zeros(3, np.int32)}, "pairs is int32"),
        ({"pairs": np.array([0, 1, 9])}, "pairs from 0 to 9: out has 9 rows"),
        ({"pairs": np.array([0, 1, -1])}, "pairs from -1"),
        ({"starts": np.array([0, 2, 4])}, "3 pairs"),
        ({"starts": np.array([0, 4, 3])}, "rise"),
        ({"weights": np.zeros((3, 2), np.int64)}, r"weights \[3, 2\]"),
        ({"intermediate": 0}, "intermediate 0"),
        ({"threads": 0}, "threads 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {**make_case(40, 24, [1, 2], torch.float32).arguments, "threads": 1}
    arguments["x"], arguments["out"] = torch.zeros(3, 40), torch.zeros(9, 40)
    with pytest.raises(ValueError, match=message):
        few_token_experts(**{**arguments, **change})


def test_matrices_that_do_not_fit_have_no_addresses() -> None:
    for gate_up, down in ((torch.zeros(6, 4), torch.zeros(4, 2)), (torch.zeros(4, 8)[:, ::2], torch.zeros(4, 2))):
        with pytest.raises(ValueError, match=r"expected \[2 I, H\]"):
            addresses(gate_up, down)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slabs_of_experts_take_it_where_rows_are_few(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some experts, some of their rows; tokens that choose experts outside the slab get nothing from it."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 40, generator=generator).to(dtype)
    chosen = torch.rand(9, 6, generator=generator).topk(2).indices
    slab = Slab(1, 5, 8, 32)
    gate_up = (torch.randn(4, 48, 40, generator=generator) / 6).to(dtype)
    down = (torch.randn(4, 40, 24, generator=generator) / 5).to(dtype)
    tokens = sort_tokens(x, chosen, torch.ones(9, 2), 6)
    found = add_slabs(None, tokens, [SlabTensors(slab, gate_up, down)])
    monkeypatch.setattr(expert_ffn, "FEW_ROWS", -1)
    called: list[object] = []
    monkeypatch.setattr(expert_ffn, "few_token_experts", lambda *words: called.append(words))
    wanted = add_slabs(None, tokens, [SlabTensors(slab, gate_up, down)])
    assert found is not None and wanted is not None and not called
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found, wanted.float(), rtol=tolerance, atol=tolerance)
    monkeypatch.setattr(expert_ffn, "FEW_ROWS", 8)
    add_slabs(None, tokens, [SlabTensors(slab, gate_up, down)])
    assert len(called) == 1

"""CPU decode attention: both backends against a plain computation in fp64, every instruction set that builds here."""

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from hrm.errors import UnknownNameError  # noqa: E402
from runtime.kernels import compile as kernels_compile  # noqa: E402
from runtime.kernels import cpu_attention  # noqa: E402
from runtime.kernels.compile import FLAGS, build_library, find_compiler  # noqa: E402
from runtime.kernels.cpu_attention import SOURCE, attention_backend, build_failure, decode_attention  # noqa: E402

Inputs = dict[str, Any]
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
BACKENDS = [pytest.param("compiled", marks=needs_compiler), "sdpa"]
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative, of the result
SHAPES = [
    (32, 8, 128, 16),
    (7, 1, 80, 16),
    (4, 4, 64, 8),
    (6, 2, 33, 5),
    (16, 2, 16, 16),
    (5, 1, 100, 1),
]  # N, K, D, block


def make_inputs(N: int, K: int, D: int, block: int, lengths: list[int], dtype: torch.dtype, size: float = 1) -> Inputs:
    """Random tensors; blocks lie at random, memory that is not to be read holds NaN, unused table entries -1."""
    torch.manual_seed(N * D + block)
    width = -(-max(lengths) // block) + 1
    count = len(lengths) * width
    kv = torch.randn(count, 2, K, block, D).to(dtype)
    table = torch.randperm(count, dtype=torch.int32).reshape(len(lengths), width)
    for b, length in enumerate(lengths):
        last, used = divmod(length - 1, block)
        kv[table[b, last + 1 :].long()] = torch.nan
        kv[table[b, last].long(), :, :, used:] = torch.nan
        table[b, last + 1 :] = -1
    return {
        "qkv": (torch.randn(len(lengths), N + 2 * K, D) * size).to(dtype),
        "kv": kv,
        "block_table": table,
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "out": torch.full((len(lengths), N, D), torch.nan, dtype=dtype),
    }


def exact(qkv: Tensor, kv: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor) -> Tensor:
    """fp64, one sequence at a time, of a cache that holds the current token."""
    K, D = kv.shape[2], kv.shape[4]
    rows = []
    for b, length in enumerate(lengths.tolist()):
        pages = [page for page in block_table[b].tolist() if page >= 0]
        keys, values = kv[pages].double().permute(1, 2, 0, 3, 4).reshape(2, K, -1, D)[:, :, :length]
        queries = qkv[b, : out.shape[1]].double().reshape(K, -1, D)
        weights = torch.softmax(queries @ keys.transpose(-1, -2) * D**-0.5, -1)
        rows.append((weights @ values).reshape(-1, D))
    return torch.stack(rows)


def run(inputs: Inputs, backend: str = "auto", threads: int = 2) -> Tensor:
    """The result, once the cache is seen to hold the current token and nothing else has changed."""
    K, block, before = inputs["kv"].shape[2], inputs["kv"].shape[3], inputs["kv"].clone()
    scale = inputs["kv"].shape[4] ** -0.5
    decode_attention(**inputs, scale=scale, threads=threads, backend=backend)
    for b, length in enumerate(inputs["lengths"].tolist()):
        page = int(inputs["block_table"][b, (length - 1) // block])
        new = inputs["qkv"][b, -2 * K :].reshape(2, K, -1)
        before[page, :, :, (length - 1) % block] = new
    assert torch.equal(before.nan_to_num(7e4), inputs["kv"].nan_to_num(7e4))
    return inputs["out"]


def assert_close(inputs: Inputs, out: Tensor) -> None:
    """fp32 within 1e-5; less precise types within their own rounding of that."""
    wanted = exact(**inputs)
    excess = (out.double() - wanted).abs() - wanted.abs() * ROUNDING[out.dtype]
    assert excess.max().item() < 1e-5


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@needs_compiler
def test_compiled_is_exact_up_to_rounding(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, [1, 320, 17, 80, 299, 16], dtype)
    assert_close(inputs, run(inputs, "compiled"))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sdpa_is_exact_up_to_its_own_rounding(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, [1, 320, 17, 80, 299, 16], dtype)
    assert (run(inputs, "sdpa").double() - exact(**inputs)).abs().max().item() < 1e-5 + 4 * ROUNDING[dtype]


def test_sdpa_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.kernels.cpu_attention_reference.GATHERED_BYTES", 100_000)
    inputs = make_inputs(8, 2, 32, 16, [5, 70, 33, 64, 200, 1], torch.float32)
    assert_close(inputs, run(inputs, "sdpa"))


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 140), st.integers(1, 20)),
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    threads=st.integers(1, 2),
)
def test_any_shape(shape: tuple[int, int, int, int], lengths: list[int], threads: int) -> None:
    group, K, D, block = shape
    inputs = make_inputs(group * K, K, D, block, lengths, torch.float32)
    assert_close(inputs, run(inputs, "compiled", threads))


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow(backend: str) -> None:
    inputs = make_inputs(8, 2, 64, 16, [40, 100], torch.float32, size=300)
    out = run(inputs, backend)
    torch.testing.assert_close(out.double(), exact(**inputs), atol=1e-3, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_use_reaches_the_result(backend: str) -> None:
    inputs = make_inputs(4, 1, 32, 8, [20, 20], torch.float32)
    inputs["kv"][inputs["block_table"][1, 1], 0, 0, 3, 5] = torch.nan
    out = run(inputs, backend)
    assert out[0].isfinite().all() and out[1].isnan().all()


@needs_compiler
def test_thread_count_does_not_change_a_bit() -> None:
    inputs = make_inputs(32, 8, 128, 16, list(range(1, 120, 7)), torch.bfloat16)
    first = run(inputs, "compiled", 1).clone()
    assert torch.equal(first, run(inputs, "compiled", 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_sequences(backend: str) -> None:
    inputs = make_inputs(4, 2, 16, 4, [3], torch.float32)
    empty = {name: tensor if name == "kv" else tensor[:0] for name, tensor in inputs.items()}
    assert run(empty, backend).shape == (0, 4, 16)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
@needs_compiler
def test_other_instruction_sets(march: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if march == "x86-64-v3" and not {"avx2", "fma", "f16c"} <= set(kernels_compile.processor().split()):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = build_library(SOURCE, ("-O1", f"-march={march}", *FLAGS[2:]))
    assert build.library is not None, build.failure
    library = ctypes.CDLL(str(build.library))
    monkeypatch.setattr(cpu_attention, "_load", lambda: (library, ""))
    for dtype in ROUNDING:
        for shape in SHAPES:
            inputs = make_inputs(*shape, [1, 50, 17, 80], dtype)
            assert_close(inputs, run(inputs, "compiled"))


@needs_compiler
def test_built_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_library(source)
    assert first.library is not None and ctypes.CDLL(str(first.library)).seven() == 7
    written = first.library.stat().st_mtime_ns
    assert build_library(source) == first and first.library.stat().st_mtime_ns == written
    source.write_text('extern "C" int seven() { return 8; }')
    assert build_library(source).library != first.library
    assert len(list(first.library.parent.iterdir())) == 2  # nothing left over from building


@needs_compiler
def test_built_again_with_another_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, header = tmp_path / "tiny.cpp", tmp_path / "number.h"
    source.write_text('#include "number.h"\nextern "C" int number() { return NUMBER; }')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in (7, 8):
        header.write_text(f"#define NUMBER {number}\n")
        library = build_library(source).library
        assert library is not None and ctypes.CDLL(str(library)).number() == number


@needs_compiler
def test_a_failing_build_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int nonsense(")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = build_library(source)
    assert build.library is None and "broken.cpp" in build.failure
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build_library(source).library is None


def test_without_a_compiler_sdpa_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu_attention, "_load", cpu_attention._load.__wrapped__)
    assert attention_backend() == "sdpa" and "no C++ compiler" in build_failure()
    inputs = make_inputs(4, 2, 16, 4, [3, 9], torch.float32)
    assert_close(inputs, run(inputs))
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        run(inputs, "compiled")


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_CPU_ATTENTION", "sdpa")
    assert attention_backend() == "sdpa"
    monkeypatch.setenv("HRM_CPU_ATTENTION", "fast")
    with pytest.raises(UnknownNameError, match="fast"):
        attention_backend()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(2, 9, 16)}, "query heads"),
        ({"qkv": torch.zeros(2, 8, 12)}, "head_dim 12"),
        ({"qkv": torch.zeros(2, 8, 32)[:, :, ::2]}, "not contiguous"),
        ({"kv": torch.zeros(3, 1, 2, 4, 16)}, r"expected \[B, N \+ 2 K, D\]"),
        ({"kv": torch.zeros(30, 2, 2, 4, 16).half()}, "kv is .* float16 .* expected .* float32"),
        ({"lengths": torch.tensor([3, 9])}, "lengths is .* int64"),
        ({"lengths": torch.tensor([0, 9], dtype=torch.int32)}, "lengths from 0 to 9"),
        ({"lengths": torch.tensor([1, 99], dtype=torch.int32)}, "lengths from 1 to 99"),
        ({"block_table": torch.full((2, 4), 99, dtype=torch.int32)}, r"block_table\[0, 0\] is 99"),
        ({"out": torch.zeros(2, 3, 16)}, "out is"),
        ({"threads": 0}, "threads is 0"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_refused(change: Inputs, message: str, backend: str) -> None:
    inputs = {**make_inputs(4, 2, 16, 4, [3, 9], torch.float32), "scale": 0.25, "threads": 1, **change}
    with pytest.raises(ValueError, match=message):
        decode_attention(**inputs, backend=backend)

"""The runtime against transformers: the same logits and the same greedy tokens, whatever the policy."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_policies import POLICIES
from tiny_checkpoints import FAMILIES, save_tiny
from transformers import AutoModelForCausalLM

from runtime.checkpoint.checkpoint import Checkpoint
from runtime.engine import Engine
from runtime.kernels.gpu_attention import causal_attention, ragged_causal_attention
from runtime.requests.request import Completion, Request, Sampling

LOGIT_TOLERANCE = 1e-4
GENERATED = 6


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        save_tiny(family, found[family])
    return found


def prompts_of(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Ragged random prompts, the longest longer than a prefill chunk."""
    random = np.random.default_rng(seed)
    lengths = [*random.integers(1, 20, count - 1), 61]
    return [tuple(int(t) for t in random.integers(3, 128, n)) for n in lengths]


@cache
def _model(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@cache
def reference(directory: Path, prompt: tuple[int, ...]) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens of transformers' generate, and the logits they were chosen from, [generated, V]."""
    out = _model(directory).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=GENERATED,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


def check(directory: Path, policy_name: str, count: int, device: str = "cpu") -> None:
    policy = POLICIES[policy_name]
    requests = [Request(str(i), p, Sampling(GENERATED)) for i, p in enumerate(prompts_of(count))]
    engine = Engine(Checkpoint.open(directory), policy, device=device, keep_logits=True)
    results = list(engine.generate(requests))
    engine.close()
    assert sorted(r.request.request_id for r in results) == sorted(r.request_id for r in requests)
    for result in results:
        assert isinstance(result, Completion)
        tokens, logits = reference(directory, result.request.prompt)
        assert isinstance(result.logits, torch.Tensor)
        torch.testing.assert_close(result.logits, logits, atol=LOGIT_TOLERANCE, rtol=0)
        assert list(result.tokens) == tokens
        assert result.finish_reason == ("stop" if tokens[-1] == 2 else "length")


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_equal_transformers(checkpoints: dict[str, Path], family: str, policy_name: str) -> None:
    check(checkpoints[family], policy_name, count=14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_same_on_a_gpu(checkpoints: dict[str, Path], family: str, policy_name: str) -> None:
    check(checkpoints[family], policy_name, count=14, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ragged_attention_equals_padded() -> None:
    """Two ways through the same prompts, in bf16."""
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [3, 17, 1, 40, 64]
    qkv = torch.randn(sum(lengths), 8, 32, device="cuda", generator=generator).bfloat16()
    borders = torch.tensor([0, 3, 20, 21, 61, 125], device="cuda", dtype=torch.int32)
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]
    ragged = ragged_causal_attention(q, k, v, borders, 64, 32**-0.5).flatten(1)
    for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        alone = causal_attention(*(x[start:stop].float() for x in (q, k, v)), 32**-0.5)
        torch.testing.assert_close(ragged[start:stop].float(), alone, atol=0.03, rtol=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "policy_name",
    [
        "cgopipe, kernel", "auto, mixed, batch", "flexgen, part resident", "module_batched, split",
        "expert cache, lru", "expert cache, predictive", "expert cache, lru, misses on both",
        "expert cache, predictive, misses on both", "expert cache, predictive, misses on the CPU",
    ],
)  # fmt: skip
def test_bf16_on_a_gpu_stays_near(checkpoints: dict[str, Path], policy_name: str) -> None:
    """Half precision takes other kernels: the first token's logits are those of fp32 up to rounding."""
    requests = [Request(str(i), p, Sampling(1)) for i, p in enumerate(prompts_of(14))]
    source = Checkpoint.open(checkpoints["mixtral"], torch.bfloat16)
    engine = Engine(source, POLICIES[policy_name], device="cuda", keep_logits=True)
    results = list(engine.generate(requests))
    engine.close()
    errors = []
    for result in results:
        assert isinstance(result, Completion) and isinstance(result.logits, torch.Tensor)
        wanted = reference(checkpoints["mixtral"], result.request.prompt)[1][0]
        errors.append(float((result.logits[0] - wanted).norm() / wanted.norm()))
    assert np.median(errors) < 0.03

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

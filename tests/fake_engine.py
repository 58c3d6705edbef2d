"""An engine that invents its tokens, to test what surrounds one; and small models on disk, without transformers."""

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hrm.predict.timeline import Timeline
from runtime.requests.request import Completion, Refusal, Request

LONGEST_PROMPT = 60  # beyond it the fake refuses, as an engine does under a small policy
TINY_CONFIG = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "eos_token_id": 2,
    "dtype": "float32",
}
TINY_POLICY = """\
schedule: cgopipe
batch_size: 8
micro_batch_size: 4
ffn_batch_size: 4
attention_on_gpu: 0.0
experts_on_gpu: 1.0
weights_on_gpu: 0.0
kv_on_gpu: 0.0
dense_weights_on_gpu: 1.0
weights_on_disk: 0.0
attention_place: cpu
ffn_batching: micro_batch
mixed_prefill: false
prefill_chunk_tokens: 256
page_pool_bytes: 1000000.0
tensor_parallel_size: 1
"""


@dataclass
class FakeProgress:
    """Counts."""

    generated_tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    tokens_per_s: float = 0.0


@dataclass
class FakeEngine:
    """Tokens are a hash of prompt, seed and place; requests finish in a random order, `pause` seconds apart."""

    detokenise: Callable[[Sequence[int]], str] | None = None
    pause: float = 0.0
    progress: FakeProgress = field(default_factory=FakeProgress)
    last_timeline: Timeline | None = None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Refusal]:
        """Every request once."""
        order = list(requests)
        random.shuffle(order)
        for request in order:
            time.sleep(self.pause)
            self.progress.passes += 1
            self.progress.seconds += max(self.pause, 1e-3)
            yield self._answer(request)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request) -> Completion | Refusal:
        if len(request.prompt) > LONGEST_PROMPT:
            return Refusal(request, f"{len(request.prompt)} tokens exceed {LONGEST_PROMPT}")
        chooser = random.Random(f"{request.prompt}:{request.sampling.seed}")
        tokens = tuple(chooser.choices(range(3, 128), k=request.sampling.max_tokens))
        self.progress.generated_tokens += len(tokens)
        text = "" if self.detokenise is None else self.detokenise(tokens)
        return Completion(request, tokens, text, "length")


def write_config(path: Path) -> Path:
    """config.json of a tiny model, for --synthetic."""
    path.write_text(json.dumps(TINY_CONFIG))
    return path


def write_policy(path: Path) -> Path:
    """A policy for it."""
    path.write_text(TINY_POLICY)
    return path


def write_checkpoint(directory: Path, chat_template: str | None = None, tokenizer: bool = True) -> Path:
    """A checkpoint directory with random weights and a tokenizer that knows the words w0 .. w119."""
    from safetensors.torch import save_file

    from runtime.checkpoint.expected import expected_tensors
    from runtime.checkpoint.synthetic import synthetic_checkpoint

    directory.mkdir()
    source = synthetic_checkpoint(str(write_config(directory / "config.json")))
    weights = {name: source.tensor(name, shape) for name, shape in expected_tensors(source.family, source.config)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        _write_tokenizer(directory / "tokenizer.json")
    if chat_template is not None:
        config = {"chat_template": chat_template, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<unk>", "<s>", "</s>", "user", "assistant", ":", *(f"w{i}" for i in range(120))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))

"""Saves tiny random checkpoints of every family through transformers, with a tokenizer, for tests of the runtime."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 128
BOS, EOS = 1, 2
_SHARED = {
    "vocab_size": VOCAB_SIZE,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,  # large enough that greedy tokens differ from step to step
}
_TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "what is the time?",
    "0123456789 a list, of words.",
    "Pack my box with five dozen liquor jugs.",
    "How vexingly quick daft zebras jump!",
    "Sphinx of black quartz: judge",
)


def _mixtral() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**_SHARED | sizes))


def _qwen3_moe() -> PreTrainedModel:
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_experts": 8, "head_dim": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SHARED | sizes, moe_intermediate_size=24, norm_topk_prob=True))


def _olmoe() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_experts": 8}
    return OlmoeForCausalLM(OlmoeConfig(**_SHARED | sizes, clip_qkv=1.5))


def _qwen2_moe() -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 3, "num_experts": 6}
    widths = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 56}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**_SHARED | sizes | widths, mlp_only_layers=[1]))


_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "qwen2_moe": _qwen2_moe,
}
FAMILIES = tuple(_MODELS)


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model in fp32 whose norms and biases are random too, so that leaving one out shows."""
    torch.manual_seed(seed)
    model = _MODELS[family]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCAB_SIZE tokens that puts a BOS in front, as Mixtral's does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny(family: str, directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Saves model and tokenizer into `directory`; returns the model."""
    model = tiny_model(family, seed).to(dtype)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model

"""Writes a trained model as an ordinary Hugging Face checkpoint, with how it was trained beside it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_machine import describe_machine
from small_moe_report import balance_of
from small_moe_train import TrainSettings
from transformers import MixtralForCausalLM


def save_checkpoint(
    model: MixtralForCausalLM,
    data: Path,
    output: Path,
    settings: TrainSettings,
    result: dict[str, Any],
    unigram: dict[str, float],
) -> None:
    """config.json, model.safetensors in bf16, tokenizer.json and training.json; older files of these names are lost."""
    output.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.bfloat16).save_pretrained(output)
    shutil.copyfile(data / "tokenizer.json", output / "tokenizer.json")
    held_out = result["held_out"]
    record = {
        "settings": asdict(settings),
        "weights": sum(p.numel() for p in model.parameters()),
        "machine": describe_machine(settings.device),
        "text": json.loads((data / "sizes.json").read_text()),
        "speed": result["speed"],
        "held_out_loss": held_out.loss,
        "held_out_unigram_entropy": unigram,
        "load_by_layer": [balance_of(load) for load in held_out.load],
        "curve": result["curve"],
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n")

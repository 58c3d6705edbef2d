"""Hugging Face transformers' Mixtral with random weights in CPU memory, offloaded by accelerate."""

import gc
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate.big_modeling import cpu_offload, dispatch_model, init_empty_weights
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils.modeling import infer_auto_device_map
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hrm.errors import HrmError
from runtime.memory.host_buffer import HostBuffer

BLOCK = (1 << 22) + 17  # elements of the random numbers that repeat; no row length divides it
SLACK_BYTES = 1 << 30  # workspaces, and gaps between the allocator's blocks


@dataclass
class PeerModel:
    """A model whose parameters all lie in `buffers` until it is offloaded. weights: by name, on the CPU."""

    module: Any  # of transformers
    weights: dict[str, Tensor]
    buffers: list[HostBuffer]
    device: torch.device

    @property
    def config(self) -> Any:
        """Of transformers."""
        return self.module.config

    @property
    def total_bytes(self) -> int:
        """Of all weights."""
        return sum(t.nbytes for t in self.weights.values())

    def offload(self, max_memory: int) -> dict[str, Any]:
        """Lets accelerate place the model, with at most `max_memory` bytes of the GPU for weights; the device map.

        Raises:
            HrmError: accelerate would use the disk.
        """
        self.restore()
        limits: dict[int | str, int | str] = {0: max_memory, "cpu": 4 * self.total_bytes}
        names = self.module._no_split_modules
        device_map: dict[str, Any] = infer_auto_device_map(self.module, limits, no_split_module_classes=names)
        if "disk" in device_map.values():
            raise HrmError("accelerate places weights on disk; give --max-memory more")
        if self.device.type == "cpu" or set(device_map.values()) == {"cpu"}:
            cpu_offload(self.module, execution_device=self.device)
        else:
            dispatch_model(self.module, device_map, skip_keys=self.module._skip_keys_device_placement)
        return device_map

    def restore(self) -> None:
        """All weights back in CPU memory, where they lie unchanged; no hooks."""
        remove_hook_from_submodules(self.module)
        for name, tensor in self.weights.items():
            parent, _, leaf = name.rpartition(".")
            self.module.get_submodule(parent)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def offloaded_bytes(self, device_map: dict[str, Any]) -> int:
        """Weights that cross the link in every pass."""
        away = [name for name, device in device_map.items() if device == "cpu"]
        return sum(t.nbytes for n, t in self.weights.items() if any(f"{n}.".startswith(f"{a}.") or not a for a in away))

    def lock(self) -> None:
        """Page-locks every weight where it lies. Raises HrmError."""
        if self.device.type == "cuda":
            for buffer in self.buffers:
                buffer.lock()

    def kv_bytes(self, batch: int, context: int) -> int:
        """KV cache of so many sequences."""
        c = self.config
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return int(2 * c.num_hidden_layers * c.num_key_value_heads * head_dim * batch * context * c.dtype.itemsize)

    def activation_bytes(self, tokens: int) -> int:
        """About what `tokens` in one forward pass take at most: in the experts, every token `top_k` times.

        Gate and up, the activated gate and its product with up; the experts' inputs, and hidden states around them.
        """
        c = self.config
        expert = tokens * c.num_experts_per_tok * (4 * c.intermediate_size + 2 * c.hidden_size)
        return int((expert + tokens * c.hidden_size * 8) * c.dtype.itemsize) + SLACK_BYTES


def build_model(name_or_path: str, layers: int | None, dtype: torch.dtype, device: torch.device) -> PeerModel:
    """The model of a shipped config, or of a config.json, with repeated random weights.

    Raises:
        HrmError: CPU memory that cannot be had.
    """
    config = AutoConfig.for_model(**_raw_config(name_or_path, layers))
    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    weights, buffers = {}, []
    for name, parameter in module.named_parameters():
        buffers.append(HostBuffer(parameter.numel() * dtype.itemsize))
        weights[name] = buffers[-1].bytes.view(dtype).view(parameter.shape)
    _write_random(weights, dtype, config.hidden_size)
    model = PeerModel(module, weights, buffers, device)
    model.restore()
    return model


def _raw_config(name_or_path: str, layers: int | None) -> dict[str, Any]:
    path = Path(name_or_path)
    shipped = resources.files("hrm.data.models") / f"{name_or_path}.json"
    raw: dict[str, Any] = json.loads((path if path.exists() else shipped).read_text(encoding="utf-8"))
    return raw if layers is None else {**raw, "num_hidden_layers": layers}


def _write_random(weights: dict[str, Tensor], dtype: torch.dtype, hidden_size: int) -> None:
    """Random numbers everywhere, ones in norms, by one thread per core."""
    generator = torch.Generator().manual_seed(0)
    source = (torch.randn(BLOCK, generator=generator) * hidden_size**-0.5).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # every filling thread would bring its own team
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda piece: piece.copy_(source[: len(piece)]), _pieces(weights)))
    torch.set_num_threads(threads)
    for name, tensor in weights.items():
        if "norm" in name:
            tensor.fill_(1.0)


def _pieces(weights: dict[str, Tensor]) -> Iterator[Tensor]:
    for tensor in weights.values():
        yield from tensor.view(-1).split(BLOCK)

"""Finds a weight under the names that transformers 5 uses in memory, where experts are fused into one tensor.

save_pretrained writes the published names unless told `save_original_format=False`; then a layer's experts are
`mlp.experts.gate_up_proj` [E, 2 I, H] and `mlp.experts.down_proj` [E, H, I].
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from runtime.checkpoint.header import StoredTensor

_EXPERT = re.compile(r"(.+\.)(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


@dataclass(frozen=True, slots=True)
class Located:
    """A weight in a file: a whole stored tensor, or the part of a fused one that belongs to `expert`."""

    stored: StoredTensor
    expert: int | None = None
    part: str = ""  # "gate", "up" or "down"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        if self.expert is None:
            return self.stored.shape
        _, rows, columns = self.stored.shape
        return (rows, columns) if self.part == "down" else (rows // 2, columns)

    def cut(self, whole: Tensor) -> Tensor:
        """The weight out of the stored tensor, or out of what indexing it by `expert` gave."""
        if self.expert is None or self.part == "down":
            return whole
        half = whole.shape[0] // 2
        return whole[:half] if self.part == "gate" else whole[half:]


def locate(name: str, stored: Mapping[str, StoredTensor]) -> Located | None:
    """Where the weight of that published name is; None if it is nowhere."""
    if name in stored:
        return Located(stored[name])
    match = _EXPERT.fullmatch(name)
    if match is None:
        renamed = stored.get(name.replace(".block_sparse_moe.gate.", ".mlp.gate."))
        return Located(renamed) if renamed else None
    prefix, expert, part = match[1], int(match[2]), _PARTS[match[3]]
    fused = stored.get(f"{prefix}mlp.experts.{'down_proj' if part == 'down' else 'gate_up_proj'}")
    if fused is None or len(fused.shape) != 3 or expert >= fused.shape[0]:
        return None
    return Located(fused, expert, part)

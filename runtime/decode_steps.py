"""A decode pass's work before the experts, for a batch that is one micro-batch with all K, V on the GPU.

Such passes are bound by launches: some thirty small kernels a layer. Inputs and results lie in buffers that stay where
they are, the same for every layer, so that each step of a layer can be a graph.

T sequences, H hidden_size, N query heads, K key-value heads, D head_dim, k top_k, C context padded to blocks.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from runtime.graphs import Calls
from runtime.kernels.gpu_attention import Masks, decode_attention, mask_of, padded_groups
from runtime.memory.kv_cache import BLOCK, new_kv
from runtime.model_memory import ModelMemory
from runtime.models.config import ModelConfig
from runtime.models.family import Family, Routed, Weights
from runtime.tables import DecodeTables

MOST_SHAPES = 2  # of contexts that are kept: as many as there are batches in turns
WIDTH = 4  # blocks: contexts are padded to multiples at least, so that graphs last as many tokens


@dataclass
class Contexts:
    """Where K, V lie: table [T, C / block], home [2, T], masks; counts: blocks of each sequence, padded."""

    counts: tuple[int, ...]
    table: Tensor
    home: Tensor
    masks: Masks = field(default_factory=dict)


class DecodeSteps:
    """The steps of all layers for T sequences. `begin` a pass, then for each layer `pre`, `attend`, `post`.

    hidden [T, H], cos and sin [T, D], qkv [T, N + 2 K, D], attended [T, N D].
    """

    def __init__(self, config: ModelConfig, family: Family, sequences: int, device: torch.device, calls: Calls) -> None:
        self._config, self._family, self.sequences, self._calls = config, family, sequences, calls

        def empty(*shape: int) -> Tensor:
            return torch.empty((sequences, *shape), dtype=config.dtype, device=device)

        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self._hidden, self._qkv = empty(config.hidden_size), empty(heads, config.head_dim)
        self._cos, self._sin, self._attended = empty(config.head_dim), empty(config.head_dim), empty(config.q_width)
        self._routed: dict[str, Tensor] = {}
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._contexts: OrderedDict[tuple[int, ...], Contexts] = OrderedDict()

    def begin(self, tables: DecodeTables) -> None:
        """A pass over these contexts."""
        config, lengths = self._config, tables.gpu_lengths
        groups = list(padded_groups(_padded(tables.gpu_blocks), BLOCK * config.num_key_value_heads * config.head_dim))
        contexts, self._rotation = self._contexts_of(groups, tables), None
        contexts.table[:, : tables.resident_table.shape[1]] = tables.resident_table
        contexts.home.copy_(tables.resident_home)
        for rows, width in groups:
            key, fresh = (rows.start, rows.stop, width * BLOCK), mask_of(lengths[rows], width * BLOCK, config.dtype)
            contexts.masks.setdefault(key, torch.empty_like(fresh)).copy_(fresh)

    def pre(
        self, layer: int, weights: Weights, hidden: Tensor, added: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """hidden [T, H], and what is to be added to it -> their sum, and qkv of it.

        rotation: cos, sin [T, D], the same for all layers of a pass.
        """
        if self._rotation is not rotation:
            self._cos.copy_(rotation[0])
            self._sin.copy_(rotation[1])
            self._rotation = rotation
        if added is None:
            self._hidden.copy_(hidden)
        else:
            torch.add(hidden, added, out=self._hidden)
        self._calls.run(("pre", layer), partial(self._pre, weights))
        return self._hidden, self._qkv

    def _pre(self, weights: Weights) -> None:
        self._qkv.copy_(self._family.pre_attention(self._config, weights, self._hidden, self._cos, self._sin))

    def attend(self, layer: int, pool: Tensor) -> Tensor:
        """The layer's blocks [blocks, 2, K, block, D], which take the new K, V -> attended."""
        contexts = next(reversed(self._contexts.values()))
        key = "attend", layer, contexts.counts, pool.data_ptr()  # the pool grows with what is in flight
        self._calls.run(key, partial(self._attend, pool, contexts))
        return self._attended

    def _attend(self, pool: Tensor, contexts: Contexts) -> None:
        config, (block, offset) = self._config, contexts.home
        pool[block, :, :, offset] = new_kv(config, self._qkv)
        shape = config.num_attention_heads, config.head_dim**-0.5
        given = contexts.table, offset, *shape, contexts.counts, contexts.masks
        self._attended.copy_(decode_attention(self._qkv, pool, *given, stored=True))

    def post(self, layer: int, weights: Weights) -> Routed:
        """Of `pre`'s hidden states and `attend`'s result."""
        self._calls.run(("post", layer), partial(self._post, weights))
        return Routed(**self._routed) if self._config.moe_layers[layer] else Routed(self._routed["hidden"])

    def _post(self, weights: Weights) -> None:
        routed = self._family.post_attention(self._config, weights, self._hidden, self._attended)
        for name, found in vars(routed).items():
            if found is None:
                continue
            if name not in self._routed:  # a layer's first call is not recorded
                self._routed[name] = torch.empty_like(found)
            self._routed[name].copy_(found)

    def _contexts_of(self, groups: list[tuple[slice, int]], tables: DecodeTables) -> Contexts:
        """Kept ones of this shape, the latest from here on, or new ones in the place of the oldest."""
        counts = tuple(width for rows, width in groups for _ in range(rows.start, rows.stop))
        if counts not in self._contexts:
            table = tables.resident_table.new_zeros((len(counts), max(counts)))
            self._contexts[counts] = Contexts(counts, table, torch.empty_like(tables.resident_home))
            if len(self._contexts) > MOST_SHAPES:
                old, _ = self._contexts.popitem(last=False)
                self._calls.forget(lambda key: isinstance(key, tuple) and key[0] == "attend" and key[2] == old)
        self._contexts.move_to_end(counts)
        return self._contexts[counts]


def _padded(blocks: Sequence[int]) -> list[int]:
    """Up to multiples of WIDTH, or of an eighth to a quarter of them where that is more."""
    steps = [max(WIDTH, 1 << max(0, count.bit_length() - 3)) for count in blocks]
    return [-(-count // step) * step for count, step in zip(blocks, steps, strict=True)]


@dataclass
class StepsBySize:
    """Steps for the latest number of sequences, once a second pass has as many."""

    make: Callable[[int], DecodeSteps]
    _steps: DecodeSteps | None = None
    _latest: int = 0

    def of(self, sequences: int) -> DecodeSteps | None:
        """For a pass that repeats its steps for so many; None where the one before had another number."""
        before, self._latest = self._latest, sequences
        if before != self._latest:
            return None
        if self._steps is None or self._steps.sequences != self._latest:
            self._steps = self.make(self._latest)
        return self._steps


def make_steps(memory: ModelMemory, calls: Callable[[], Calls]) -> StepsBySize:
    """Steps over a model's weights, which do not move; `calls`: one for every number of sequences."""
    return StepsBySize(lambda size: DecodeSteps(memory.config, memory.family, size, memory.device, calls()))

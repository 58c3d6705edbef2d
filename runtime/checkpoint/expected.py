"""The tensors that a model must have, by checkpoint name."""

from collections.abc import Iterator

from runtime.models.common import global_names, global_shapes
from runtime.models.config import ModelConfig
from runtime.models.family import Family


def expected_tensors(family: Family, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight, layer by layer; those outside the layers first."""
    shapes = global_shapes(config)
    yield from ((name, shapes[local]) for local, name in global_names(config).items())
    for layer in range(config.num_layers):
        shapes = family.layer_shapes(config, layer)
        yield from ((name, shapes[local]) for local, name in family.layer_names(config, layer).items())
        if config.moe_layers[layer]:
            yield from _experts(family, config, layer)


def _experts(family: Family, config: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide = (config.moe_intermediate_size, config.hidden_size)
    for expert in range(config.num_experts):
        yield from zip(family.expert_names(layer, expert), (wide, wide, wide[::-1]), strict=True)

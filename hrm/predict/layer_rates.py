"""Cost of each part of one layer on one machine: what the durations of tasks are made of."""

from dataclasses import dataclass, replace
from functools import cached_property

from hrm.predict.machine import Machine
from hrm.predict.rates import Rates
from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import expert_operator, layer_linears, linear_operator, routed_tokens_per_expert
from hrm.roofline.operator import Operator, fuse, merge, scale
from hrm.roofline.sizes import Sizes
from hrm.spec.model import LayerSpec, ModelSpec

POST_ATTENTION = ("attention_output", "router", "shared_experts", "dense_ffn")


@dataclass(frozen=True)
class Cost:
    """Seconds a task takes alone, its flops, and the bytes it moves: over its link, or in the memory it computes from.

    `dram_bytes` are those of them that pass through CPU memory. `overhead` is the part of `seconds` in which none do.
    """

    seconds: float
    flops: float = 0.0
    bytes: float = 0.0
    dram_bytes: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class LayerRates:
    """Costs of the parts of one layer; every operator at its own roof, as in the closed form."""

    rates: Rates
    layer: LayerSpec

    @property
    def _machine(self) -> Machine:
        return self.rates.machine

    @cached_property
    def _model(self) -> ModelSpec:
        return replace(self.rates.model, layers=(self.layer,), encoder_layers=())

    @cached_property
    def sizes(self) -> Sizes:
        """What this layer alone weighs."""
        return Sizes(self._model, self._machine.precision)

    @cached_property
    def dense_bytes(self) -> float:
        """Weights of the layer that are not paged."""
        paged = "experts" if self.rates.model.num_moe_layers else "dense_ffn"
        parameters = self.layer.parameters(self.rates.model.hidden_size)
        return (sum(parameters.values()) - parameters[paged]) * self._machine.precision.weight_bytes

    def linears(self, post: bool, tokens: float) -> Cost:
        """The projections before (QKV), or after attention: output, router, shared experts and dense FFN."""
        parts = []
        for name, projection in layer_linears(self.layer, self.rates.model.hidden_size):
            if name == "dense_ffn" and not self.rates.model.num_moe_layers:
                continue
            if (name in POST_ATTENTION) == post:
                widths = (projection.in_features, projection.out_features)
                parts.append(linear_operator(name, *widths, tokens, self._machine.precision))
        return self._gpu(merge(parts), tokens)

    def _gpu(self, operators: tuple[Operator, ...], rows: float) -> Cost:
        seconds = sum(float(self._machine.seconds("gpu", op, rows)) for op in operators)
        return Cost(seconds, sum(float(op.flops) for op in operators), sum(float(op.bytes) for op in operators))

    def decode_attention(self, level: str, sequences: float, context_len: float) -> Cost:
        """Scores and PV of `sequences` decode steps in one fused read of their KV."""
        parts = decode_attention(self._model, self._machine.precision, sequences, context_len)
        copies = self.rates.kv_replication if level == "gpu" else 1.0
        return self._fused(level, fuse(parts, copies), 1.0)

    def prefill_attention(self, prompts: float, prompt_len: float, prompt_len_sq: float) -> Cost:
        """Causal attention of whole prompts on the GPU."""
        parts = prefill_attention(self._model, self._machine.precision, prompts, prompt_len, prompt_len_sq)
        return self._fused("gpu", fuse(parts), prompt_len)

    def experts(self, level: str, tokens: float, share: float) -> Cost:
        """`share` of the routed experts for a batch of `tokens`: those it touches are read once."""
        op = expert_operator(self._model, self._machine.precision, tokens)
        rows = routed_tokens_per_expert(self._model, tokens)
        return self._fused(level, scale(op, share), float(rows))

    def listed_experts(self, level: str, tokens: float, share: float, read: float) -> Cost:
        """`share` of the choices of `tokens`, and the experts that they fall on: `read` of the layer's, each once."""
        ffn, op = self.layer.ffn, scale(expert_operator(self._model, self._machine.precision, tokens), share)
        rows = tokens * ffn.top_k * share / (read * ffn.num_experts)
        return self._fused(level, replace(op, weight_bytes=read * self.sizes.expert_bytes), rows)

    def _fused(self, level: str, op: Operator, rows: float) -> Cost:
        moved = float(op.bytes)
        seconds = float(self._machine.seconds(level, op, rows))
        return Cost(seconds, float(op.flops), moved, moved if level == "cpu" else 0.0)

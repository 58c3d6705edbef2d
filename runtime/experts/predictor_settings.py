"""What a routing-path predictor predicts, how large it is, and how it is trained."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from hrm.errors import HrmError, WorkloadError
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.model import ModelSpec


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PredictorTarget(_Frozen):
    """The model whose routers are predicted."""

    model: str
    num_moe_layers: PositiveInt
    num_experts: PositiveInt
    top_k: PositiveInt
    vocab_size: PositiveInt


class PredictorSettings(_Frozen):
    """Sizes of the network. hidden_size and ffn_size are ExpertFlow's (arXiv 2410.17954); layers and heads are chosen
    so that with the vocabulary of T5 it has the paper's 7 MB.

    window: tokens that it sees at most, itself included. token_rank: width of the token profiles
    (see `RoutingPredictor`); 0 for the paper's network, which has none. following_size: hidden size of the heads of the
    next token, which the paper does not have either.
    """

    hidden_size: PositiveInt = 32
    ffn_size: PositiveInt = 2048
    num_heads: PositiveInt = 4
    head_dim: PositiveInt = 16
    encoder_layers: PositiveInt = 2
    decoder_layers: PositiveInt = 2
    window: PositiveInt = 256
    token_rank: NonNegativeInt = 32
    following_size: PositiveInt = 256
    num_buckets: PositiveInt = 32  # of the relative position bias, as T5
    max_distance: PositiveInt = 128  # as T5

    @model_validator(mode="after")
    def _check(self) -> "PredictorSettings":
        if self.window < 2 or self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError("window >= 2, num_buckets >= 4 and max_distance > num_buckets / 2 are needed")
        return self


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. pos_weight is the weight of chosen experts in the loss; 1 keeps probabilities calibrated (they sum
    to about top_k), which the cache needs; more than 1 buys recall at a threshold with precision.
    """

    epochs: int = 30
    following_epochs: int = 12  # of the heads of the next token, which are trained last
    patience: int = 4  # epochs without a lower validation loss, after which a stage stops
    validation_share: float = 0.1  # of the training prompts
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    pos_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = min(self.epochs, self.following_epochs, self.patience, self.batch_tokens) >= 1
        if not whole or not 0 < self.validation_share < 1 or not 0 <= self.dropout < 1 or self.seed < 0:
            raise HrmError(
                "predictor training: epochs, patience and batch_tokens must be at least 1, validation_share between 0 "
                "and 1, dropout in [0, 1), the seed not negative"
            )
        if not all(math.isfinite(x) and x > 0 for x in (self.learning_rate, self.pos_weight)):
            raise HrmError("predictor training: learning_rate and pos_weight must be positive numbers")


def target_of(model: ModelSpec) -> PredictorTarget:
    """What a predictor of this model's routing has to cover.

    Raises:
        HrmError: no MoE layer, or several kinds of them.
    """
    kinds = {(layer.ffn.num_experts, layer.ffn.top_k) for layer in model.layers if layer.ffn.is_moe}
    if len(kinds) != 1:
        raise HrmError(f"{model.name} has {len(kinds)} kinds of MoE layers; a predictor needs exactly one")
    ((num_experts, top_k),) = kinds
    return PredictorTarget(
        model=model.name, num_moe_layers=model.num_moe_layers, num_experts=num_experts, top_k=top_k,
        vocab_size=model.vocab_size,
    )  # fmt: skip


def check_target(trace: RoutingTrace, target: PredictorTarget, where: str = "routing trace") -> None:
    """Refuses a trace of a model that the predictor was not made for.

    Raises:
        WorkloadError: another model's name, layers, experts or top_k; no token ids, or one outside the vocabulary.
    """
    _, layers, top_k = trace.experts.shape
    found = {"model": trace.model, "MoE layers": layers, "experts per layer": trace.num_experts, "top_k": top_k}
    wanted = (target.model, target.num_moe_layers, target.num_experts, target.top_k)
    for (name, value), expected in zip(found.items(), wanted, strict=True):
        if value != expected:
            raise WorkloadError(
                f"{where}: {name} is {str(value)[:80]!r}, the predictor is made for {expected!r}; train one on this "
                "model's traces with hrm predictor train"
            )
    largest = int(token_ids(trace, where).max())
    if largest >= target.vocab_size:
        raise WorkloadError(
            f"{where}: token id {largest} is outside the predictor's vocabulary of {target.vocab_size}; the trace is "
            f"of another tokenizer than {target.model}'s"
        )


def token_ids(trace: RoutingTrace, where: str = "routing trace") -> NDArray[np.integer[Any]]:
    """The trace's token ids [T].

    Raises:
        WorkloadError: it has none.
    """
    if trace.tokens is None:
        raise WorkloadError(
            f"{where}: holds no token ids, which a predictor reads; record it with hrm run --trace-routing"
        )
    return trace.tokens

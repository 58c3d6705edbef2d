"""Learned routing of a small model, carried over to a larger one whose weights are random.

The larger model has E = m * E0 experts and chooses k of them; the small one E0 and k0. With c = k / k0 copies (1 where
k is less than k0), the experts fall into c blocks; copy j of a token takes what another prompt's token at the same
position chose, in block j. Where a block has r = E / (c E0) > 1 experts for one of the small model's, the second choice
of the layer picks one of them. Layer l takes the small model's layer l mod L0. Copies are independent of each other,
which no real router's choices are; what is kept is skew, reuse from step to step, and how well both are predicted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.path_predictions import PathPredictions, Probabilities
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.replay import RoutingReplay

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """The larger model's MoE layers, experts and top_k; copies and experts per expert of the small model's, and its
    top_k.
    """

    layers: int
    experts: int
    top_k: int
    copies: int
    spread: int
    small_top_k: int

    @property
    def kept(self) -> int:
        """How many of a small model's token's choices a copy takes."""
        return max(1, self.top_k // self.copies)


def scale_of(trace: RoutingTrace, layers: int, experts: int, top_k: int) -> Scale:
    """How the small model's choices are laid out.

    Raises:
        WorkloadError: numbers that do not divide.
    """
    small, k = trace.num_experts, trace.experts.shape[2]
    if k < 2:
        raise WorkloadError("routing with top_k 1 cannot be carried over: the second choice spreads the first")
    copies = max(1, top_k // k)
    if (top_k != 1 and top_k % k) or experts % (copies * small):
        raise WorkloadError(
            f"routing of {small} experts, top_k {k}, cannot stand for {experts} experts, top_k {top_k}: top_k must be "
            f"1 or a multiple of {k}, and experts one of {copies * small}"
        )
    return Scale(layers, experts, top_k, copies, experts // (copies * small), k)


def scaled_replay(
    trace: RoutingTrace, predictions: PathPredictions | None, scale: Scale, requests: int
) -> tuple[RoutingReplay, list[int]]:
    """Routing of the first `requests` prompts, named by number, and how many tokens each has recorded."""
    order = np.argsort(trace.prompt, kind="stable")
    _, starts = np.unique(trace.prompt[order], return_index=True)
    prompts = [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    if requests * scale.copies > len(prompts):
        raise WorkloadError(f"{requests} requests of {scale.copies} prompts each; the trace has {len(prompts)} prompts")
    layer_of = np.arange(scale.layers) % trace.experts.shape[1]
    experts, predicted, lengths = {}, {}, []
    for i in range(requests):
        own = [prompts[i * scale.copies + j] for j in range(scale.copies)]
        length = min(map(len, own))
        lengths.append(length)
        chosen = [trace.experts[rows[:length]][:, layer_of].astype(np.int64) for rows in own]  # [S, L, k0]
        experts[str(i)] = np.concatenate([_choices(c, j, scale) for j, c in enumerate(chosen)], axis=2)
        if predictions is not None:
            predicted[str(i)] = _scaled([predictions.rows(rows[:length]) for rows in own], layer_of, scale)
    return RoutingReplay(experts, predicted if predictions is not None else None), lengths


def _scaled(own: list[PathPredictions], layer_of: Ints, scale: Scale) -> PathPredictions:
    """Of the copies' prompts, [S, L0, E0] each -> [S, L, E]."""

    kept = np.float32(scale.kept / scale.small_top_k)  # of the choices, so of the probabilities, which sum to top_k

    def laid_out(parts: list[Probabilities]) -> NDArray[np.float16]:
        wide = [_spread_out(kept * part[:, layer_of], scale) for part in parts]
        return np.concatenate(wide, axis=2).astype(np.float16)

    following = [each.following for each in own if each.following is not None]
    return PathPredictions(laid_out([each.now for each in own]), laid_out(following) if following else None)


def _choices(chosen: Ints, copy: int, scale: Scale) -> Ints:
    """[S, L, k0] -> [S, L, k / copies] in the copy's block."""
    kept = chosen[:, :, : scale.kept]
    within = kept * scale.spread + chosen[:, :, 1:2] % scale.spread
    return copy * (scale.experts // scale.copies) + within


def _spread_out(probabilities: Probabilities, scale: Scale) -> NDArray[np.float32]:
    """[S, L, E0] -> [S, L, E / copies]; which of the spread experts it is, by all probabilities of that remainder."""
    p = probabilities.astype(np.float32)
    if scale.spread == 1:
        return p
    shares = np.stack([p[:, :, r :: scale.spread].sum(axis=2) for r in range(scale.spread)], axis=2)
    shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1e-9)
    found: NDArray[np.float32] = (p[:, :, :, None] * shares[:, :, None, :]).reshape(*p.shape[:2], -1)
    return found

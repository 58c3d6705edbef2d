"""Trains a routing-path predictor on a recorded trace."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_baselines import layer_frequencies
from runtime.experts.predictor_batches import TrainingRows
from runtime.experts.predictor_data import followed_rows, split_prompts
from runtime.experts.predictor_epoch import following_experts, own_experts
from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget, TrainingOptions, check_target
from runtime.experts.predictor_stage import Stage, run_stage
from runtime.experts.token_profiles import log_odds, token_profiles

Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Training:
    """A predictor with the weights of its best epochs, on the CPU. own: the stage that trained all but the heads of the
    next token's experts; following: the one that trained these.
    """

    predictor: RoutingPredictor
    own: Stage
    following: Stage


def train_predictor(
    trace: RoutingTrace,
    target: PredictorTarget,
    settings: PredictorSettings,
    options: TrainingOptions,
    device: torch.device,
    update: Update | None = None,
    embeddings: Tensor | None = None,
) -> Training:
    """Both stages; each stops early on prompts held out of the trace. `update(done, total)` in epochs.

    embeddings [V, H]: where the predictor's begin (`model_embeddings`); None: at random. Its weights are numbers of
    fp16 in the end, so that its file is half as large.

    The same seed gives the same weights on the same machine and device (CUDA kernels may add in another order).

    Raises:
        WorkloadError: a trace of another model, without token ids, or of fewer than two prompts.
        HrmError: the loss is no longer finite.
    """
    check_target(trace, target)
    train, validation = split_prompts(trace, options.validation_share, options.seed)
    count = itertools.count(1)

    def step() -> None:
        if update is not None:
            update(next(count), options.epochs + options.following_epochs)

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        predictor = RoutingPredictor(target, settings, options.dropout)
        if embeddings is not None:
            predictor.embedding.weight.data.copy_(embeddings)
        data = TrainingRows(train, _begin_at_counts(predictor, train, options.seed)), TrainingRows(validation, None)
        predictor.to(device)
        network = [p for name, p in predictor.named_parameters() if not name.startswith("following.")]
        own = run_stage(predictor, own_experts, network, data, options, options.epochs, step)
        following = train_following(predictor, data, options, step)
    return Training(predictor.cpu().half().float().eval(), own, following)


def train_following(
    predictor: RoutingPredictor,
    data: tuple[TrainingRows, TrainingRows],
    options: TrainingOptions,
    update: Callable[[], None],
) -> Stage:
    """The heads of the next token's experts, from the beginning; the rest of the predictor stays as it is.

    Raises:
        HrmError: the loss is no longer finite.
    """
    torch.manual_seed(options.seed)
    heads, (followed, rows) = predictor.following, followed_rows(data[0].trace)
    counted = followed if len(rows) else data[0].trace  # prompts of one token each: nothing follows
    with torch.no_grad():
        nn.init.kaiming_uniform_(heads.up, nonlinearity="relu")
        for zero in (heads.bias, heads.down):
            zero.zero_()
        heads.prior.copy_(torch.from_numpy(log_odds(layer_frequencies(counted)).ravel()))
    return run_stage(predictor, following_experts, heads.parameters(), data, options, options.following_epochs, update)


def _begin_at_counts(predictor: RoutingPredictor, train: RoutingTrace, seed: int) -> NDArray[np.float32] | None:
    """Begins at a lookup by token, whose profiles of rows are returned; for token_rank 0 at the layers' frequencies."""
    target, rank = predictor.target, predictor.settings.token_rank
    with torch.no_grad():
        predictor.heads.weight.mul_(0.1)
        predictor.heads.bias.copy_(torch.from_numpy(log_odds(layer_frequencies(train)).ravel()))
        if not rank:
            return None
        profiles = token_profiles(train, target.vocab_size, rank, seed)
        basis = torch.from_numpy(profiles.basis)  # [L E, rank]
        width = min(rank, predictor.settings.hidden_size)
        predictor.profiles.copy_(torch.from_numpy(profiles.table))
        predictor.profile_heads[:rank] = basis.T
        predictor.heads.weight[:, :width] += 0.1 * basis[:, :width]
    return profiles.rows

"""`hrm run --predictor` and `--token-scheduler`: what an expert cache is told before each pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hrm.errors import HrmError, PolicyError

if TYPE_CHECKING:
    from hrm.spec.model import ModelSpec
    from hrm.spec.policy import Policy
    from runtime.cli.run_options import RunOptions
    from runtime.experts.predictor_settings import PredictorTarget


def expert_options(options: RunOptions, spec: ModelSpec, policy: Policy, device: str) -> dict[str, Any]:
    """`forecast` and `units` for the engine; nothing where nothing is asked for.

    Raises:
        CheckpointError: no predictor in the file. HrmError: one of another model. PolicyError: a policy without a
            cache that is filled ahead.
    """
    predictor = options.predictor
    if predictor is None:
        return {}
    if policy.expert_cache != "predictive":
        raise PolicyError(
            f"--predictor: the policy's expert_cache is {policy.expert_cache}, which nothing is predicted for; "
            "use one with schedule: expert_cache and expert_cache: predictive"
        )
    import torch

    from runtime.experts.forecast import PathForecast
    from runtime.experts.predictor_file import load_predictor
    from runtime.experts.predictor_settings import target_of
    from runtime.experts.units import Units

    loaded, wanted = load_predictor(predictor, torch.device(device)).predictor, target_of(spec)
    if loaded.target != wanted:
        raise HrmError(
            f"{predictor}: predicts {describe_target(loaded.target)}, the model is {describe_target(wanted)}; train "
            "one with hrm predictor train on a trace of this model"
        )
    forecast = PathForecast(loaded)
    units = Units(policy.batch_size, forecast.paths) if options.token_scheduler else None
    return {"forecast": forecast, "units": units}


def describe_target(target: PredictorTarget) -> str:
    """A model in words."""
    return (
        f"{target.model} ({target.num_moe_layers} MoE layers of {target.num_experts} experts, top_k {target.top_k}, "
        f"vocabulary {target.vocab_size:,})"
    )

"""A routing-path predictor as a file: safetensors, with what it was trained for and on in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrm.errors import CheckpointError
from hrm.predict.routing_predictions import trace_checksum
from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget, TrainingOptions
from runtime.experts.predictor_training import Training

FORMAT = "hrm routing predictor 2"
_KEY = "predictor"


class TrainedOn(BaseModel):
    """What a predictor has seen. trace: checksum of the training trace. without_domain: left out of it, or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    trace: str
    prompts: int
    tokens: int
    without_domain: str | None
    options: dict[str, float]
    best_epoch: int
    validation_loss: float
    validation_recall: float
    following_recall: float


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str
    target: PredictorTarget
    settings: PredictorSettings
    trained_on: TrainedOn
    weights: str  # checksum


@dataclass(frozen=True)
class LoadedPredictor:
    """A predictor and what it was trained on."""

    predictor: RoutingPredictor
    trained_on: TrainedOn


def trained_on(
    training: Training, trace: RoutingTrace, options: TrainingOptions, without_domain: str | None
) -> TrainedOn:
    """The record of a training on this trace."""
    epoch, following = training.own.best_epoch, training.following.best_epoch
    return TrainedOn(
        trace=trace_checksum(trace), prompts=len(np.unique(trace.prompt)), tokens=len(trace.prompt),
        without_domain=without_domain, options={name: float(value) for name, value in asdict(options).items()},
        best_epoch=training.own.best, validation_loss=epoch.validation_loss, validation_recall=epoch.validation_recall,
        following_recall=following.validation_recall,
    )  # fmt: skip


def save_predictor(predictor: RoutingPredictor, trained_on: TrainedOn, path: Path) -> None:
    """Writes what `load_predictor` reads. In fp16, which holds the weights of a trained predictor exactly.

    Raises:
        CheckpointError: the file cannot be written.
    """
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in predictor.state_dict().items()}
    metadata = _Metadata(
        format=FORMAT, target=predictor.target, settings=predictor.settings, trained_on=trained_on,
        weights=_weights_checksum(weights),
    )  # fmt: skip
    try:
        save_file(weights, path, metadata={_KEY: metadata.model_dump_json()})
    except (OSError, SafetensorError) as failure:
        raise CheckpointError(f"{path}: cannot be written ({failure})") from None


def load_predictor(path: Path, device: torch.device) -> LoadedPredictor:
    """The predictor in a file, ready to predict.

    Raises:
        CheckpointError: missing, damaged, or not a routing predictor.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            raw = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; write one with hrm predictor train") from None
    except (OSError, SafetensorError) as failure:
        raise CheckpointError(f"{path}: cannot be read ({failure}); train the predictor again") from None
    metadata = _read_metadata(raw, path)
    if _weights_checksum(weights) != metadata.weights:
        raise CheckpointError(f"{path}: is damaged (weights differ from their checksum); train the predictor again")
    predictor = RoutingPredictor(metadata.target, metadata.settings)
    try:
        predictor.load_state_dict(weights)
    except RuntimeError:
        raise CheckpointError(f"{path}: its weights do not have the shapes its metadata states; train again") from None
    return LoadedPredictor(predictor.to(device).eval(), metadata.trained_on)


def _read_metadata(raw: Mapping[str, str], path: Path) -> _Metadata:
    if _KEY not in raw:
        raise CheckpointError(f"{path}: is not a routing predictor; give a file that hrm predictor train wrote")
    try:
        found: Any = json.loads(raw[_KEY])
        written = found.get("format") if isinstance(found, dict) else None
        if written != FORMAT:
            raise CheckpointError(
                f"{path}: has format {str(written)[:80]!r}, not {FORMAT!r}; train the predictor again"
            )
        return _Metadata.model_validate_json(raw[_KEY])
    except (ValueError, ValidationError, RecursionError) as failure:
        first = str(failure).splitlines()[0][:200]
        raise CheckpointError(f"{path}: its metadata are damaged ({first}); train the predictor again") from None


def _weights_checksum(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].float().numpy().tobytes())
    return digest.hexdigest()

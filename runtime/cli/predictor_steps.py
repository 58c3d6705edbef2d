"""The steps of `hrm predictor`: traces in, a predictor or its quality out."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from hrm.cli.output import print_json, print_table, print_text
from hrm.cli.progress import progress_bar
from hrm.errors import HrmError
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_predictions import save_predictions, trace_checksum
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from hrm.spec.model import ModelSpec
from hrm.spec.units import format_seconds
from runtime.cli import predictor_tables as tables
from runtime.experts.predictor import RoutingPredictor
from runtime.experts.predictor_data import load_labels, select_domain
from runtime.experts.predictor_file import LoadedPredictor, save_predictor, trained_on
from runtime.experts.predictor_inference import predict_trace
from runtime.experts.predictor_report import Evaluation
from runtime.experts.predictor_settings import PredictorSettings, TrainingOptions, check_target, target_of, token_ids
from runtime.experts.predictor_training import Training, train_predictor


def load_trace(path: Path, model: ModelSpec | None) -> RoutingTrace:
    """A checked trace with token ids. Raises WorkloadError."""
    trace = load_routing_trace(path, model)
    token_ids(trace, str(path))
    return trace


def select_prompts(
    trace: RoutingTrace, path: Path, labels: Path | None, domain: str | None, inside: bool
) -> RoutingTrace:
    """Prompts of the domain, or those outside it; all where no domain is named.

    Raises:
        HrmError: labels without a domain or the other way round; see `select_domain`.
    """
    if labels is None and domain is None:
        return trace
    if labels is None or domain is None:
        option = "--domain" if inside else "--without-domain"
        raise HrmError(f"--labels and {option} go together: the file of labels, and one domain of them")
    return select_domain(trace, load_labels(labels), domain, inside, str(path))


def load_training_trace(loaded: LoadedPredictor, path: Path | None, labels: Path | None) -> RoutingTrace | None:
    """What baselines are counted on: the prompts that the predictor was trained on, and no others; None without a path.

    Raises:
        HrmError: another trace than that, or a domain to be left out again without labels.
    """
    if path is None:
        return None
    trace, domain = load_trace(path, None), loaded.trained_on.without_domain
    check_target(trace, loaded.predictor.target, str(path))
    if domain is not None:
        if labels is None:
            raise HrmError(
                f"the predictor was trained without domain {domain!r}: give --train-labels for the baselines"
            )
        trace = select_prompts(trace, path, labels, domain, inside=False)
    if trace_checksum(trace) != loaded.trained_on.trace:
        raise HrmError(f"{path}: is not what the predictor was trained on; baselines are counted on the same prompts")
    return trace


def parse_batches(text: str) -> tuple[int, ...]:
    """ "4,16" -> (4, 16). Raises HrmError."""
    sizes = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if not all(size >= 1 for size in sizes):
        raise HrmError(f"--batches: {text[:80]!r} must be whole numbers of at least 1, such as 4,16")
    return sizes


def fit(
    trace: RoutingTrace,
    model: ModelSpec,
    settings: PredictorSettings,
    options: TrainingOptions,
    device: torch.device,
    output: Path,
    without_domain: str | None,
    embeddings: Tensor | None = None,
) -> Training:
    """Trains and saves a predictor. Raises HrmError."""
    with progress_bar("epochs") as update:
        training = train_predictor(trace, target_of(model), settings, options, device, update, embeddings)
    save_predictor(training.predictor, trained_on(training, trace, options, without_domain), output)
    return training


def predict(predictor: RoutingPredictor, trace: RoutingTrace, path: Path, output: Path | None) -> PathPredictions:
    """Of all tokens, written where there is an output. Raises WorkloadError."""
    check_target(trace, predictor.target, str(path))
    predictions = predict_trace(predictor, trace)
    if output is not None:
        save_predictions(predictions, trace, output)
        print(f"Wrote {output}", file=sys.stderr)
    return predictions


def print_training(training: Training, output: Path, json: bool) -> None:
    """Epochs of both stages, and which of them count."""
    stages = {"experts of each token": training.own, "experts of the next token": training.following}
    if json:
        report = {
            name: {"epochs": [asdict(e) for e in s.epochs], "best_epoch": s.best + 1} for name, s in stages.items()
        }
        print_json(report)
        return
    columns = ("epoch", "training loss", "validation loss", "recall, top-k")
    for name, stage in stages.items():
        rows = [
            (f"{i + 1}", f"{e.train_loss:.4f}", f"{e.validation_loss:.4f}", f"{e.validation_recall:.1%}")
            for i, e in enumerate(stage.epochs)
        ]
        print_table(f"Binary cross-entropy, {name}", columns, rows)
    best = " and ".join(f"{stage.best + 1}" for stage in stages.values())
    print_text(f"Wrote {output}: weights of epoch {best}, the lowest validation loss.")


def print_evaluation(evaluation: Evaluation, json: bool) -> None:
    """Tables, or everything as JSON."""
    if evaluation.seen:
        print("The predictor was trained on this trace: its numbers say nothing about other prompts.", file=sys.stderr)
    if json:
        print_json(asdict(evaluation) | {"trained_on": evaluation.trained_on.model_dump()})
        return
    title = f"{evaluation.model}: {evaluation.tokens:,} tokens of {evaluation.prompts:,} prompts"
    print_table(f"{title}, all layers", tables.token_columns(evaluation), tables.token_rows(evaluation))
    print_table(
        "Experts per layer that a decode pass touches; predicted: union of the tokens' top-k",
        tables.ACTIVE_COLUMNS, tables.active_rows(evaluation), numeric_from=2,
    )  # fmt: skip
    print_table(
        "Recall with top-k predicted, by MoE layer", tables.layer_columns(evaluation), tables.layer_rows(evaluation)
    )
    times = ", ".join(f"{format_seconds(s)} for {size}" for size, s in evaluation.forecast_seconds.items())
    print_text(f"Predicting a decode pass takes {times} sequences here (--forecast-time of hrm search).")
    if "previous layer" in evaluation.methods:
        print_text(
            "previous layer is given the real experts of the layer before; it knows nothing one layer further ahead."
        )

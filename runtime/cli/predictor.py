"""`hrm predictor`: trains and evaluates routing-path predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import options as opt

app = typer.Typer(help="Predictors of routing paths, learned from routing traces.", no_args_is_help=True)

DeviceOption = Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is one.")]


@app.command("train")
def train(
    trace: Annotated[Path, typer.Option(help="Routing trace with token ids (hrm run --trace-routing).")],
    model: Annotated[str, typer.Option("--model", "-m", help="Its model: checkpoint directory, config.json or name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Predictor to write (.safetensors).")],
    labels: Annotated[Path | None, typer.Option(help="JSON: prompt number of the trace -> domain.")] = None,
    without_domain: Annotated[str | None, typer.Option(help="Leave this domain of --labels out.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most so many; training stops early.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and validation prompts.")] = 0,
    hidden_size: Annotated[int, typer.Option(min=1, help="Width of the network.")] = 32,
    ffn_size: Annotated[int, typer.Option(min=1, help="Width inside its FFNs.")] = 2048,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of each of its attention heads.")] = 16,
    model_embeddings: Annotated[
        bool, typer.Option("--model-embeddings", help="Begin at the token embeddings of --model, a checkpoint.")
    ] = False,
    window: Annotated[int, typer.Option(min=2, help="Tokens that it sees at most.")] = 256,
    pos_weight: Annotated[float, typer.Option(help="Weight of chosen experts in the loss; 1: calibrated.")] = 1.0,
    device: DeviceOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Train a predictor on a routing trace: token ids in, experts of all MoE layers out.

    A tenth of the prompts decides when to stop. Minutes on a CPU for 100,000 tokens of a small model.
    """
    from hrm.cli.output import check_writable
    from hrm.spec.model_config import load_model
    from runtime.cli.requirements import require_runtime

    require_runtime()
    check_writable(output)
    from runtime.cli.predictor_steps import fit, load_trace, print_training, select_prompts
    from runtime.device import choose_device
    from runtime.experts.model_embeddings import read_embeddings
    from runtime.experts.predictor_settings import PredictorSettings, TrainingOptions

    spec, on = load_model(model), choose_device(device)
    options = TrainingOptions(epochs=epochs, seed=seed, pos_weight=pos_weight)
    recorded = select_prompts(load_trace(trace, spec), trace, labels, without_domain, inside=False)
    settings = PredictorSettings(hidden_size=hidden_size, ffn_size=ffn_size, head_dim=head_dim, window=window)
    table = read_embeddings(model, hidden_size) if model_embeddings else None
    print_training(fit(recorded, spec, settings, options, on, output, without_domain, table), output, json)


@app.command("evaluate")
def evaluate(
    trace: Annotated[Path, typer.Option(help="Routing trace with token ids, of prompts not trained on.")],
    predictor: Annotated[Path, typer.Option(help="File that hrm predictor train wrote.")],
    train_trace: Annotated[
        Path | None, typer.Option(help="The predictor's training trace; adds baselines counted on it.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="JSON: prompt number of --trace -> domain.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only this domain of --labels.")] = None,
    train_labels: Annotated[
        Path | None, typer.Option(help="--labels of --train-trace; needed where a domain was left out.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="What is at least so probable is predicted.")] = 0.5,
    batches: Annotated[str, typer.Option(help="Batch sizes of active sets.")] = "4,16",
    predictions: Annotated[Path | None, typer.Option(help="Write the probabilities, for hrm routing (.npz).")] = None,
    device: DeviceOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Recall and precision of a predictor, per token and of the experts that batches touch, beside baselines."""
    from hrm.cli.output import check_writable
    from runtime.cli.requirements import require_runtime

    require_runtime()
    check_writable(predictions)
    from runtime.cli.predictor_steps import (
        load_trace,
        load_training_trace,
        parse_batches,
        predict,
        print_evaluation,
        select_prompts,
    )
    from runtime.device import choose_device
    from runtime.experts.predictor_file import load_predictor
    from runtime.experts.predictor_report import evaluate_predictor

    sizes, loaded = parse_batches(batches), load_predictor(predictor, choose_device(device))
    test = select_prompts(load_trace(trace, None), trace, labels, domain, inside=True)
    known = load_training_trace(loaded, train_trace, train_labels)
    found = predict(loaded.predictor, test, trace, predictions)
    print_evaluation(evaluate_predictor(loaded, found, test, known, threshold, sizes), json)

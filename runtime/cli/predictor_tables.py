"""An evaluation of a routing predictor as tables."""

from runtime.experts.predictor_metrics import ActiveSets, Quality, SetAccuracy
from runtime.experts.predictor_report import Evaluation


def token_columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Of `token_rows`."""
    return (
        "method",
        "top-k",
        *(f"{part} > {evaluation.threshold:g}" for part in ("recall", "precision")),
        "next token",
    )


def token_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row per method; with top-k predicted, recall and precision are one number. Last, of the token behind each."""
    return [
        (
            name, _percent(q.top_k.recall), _percent(q.threshold.recall), _percent(q.threshold.precision),
            _percent(evaluation.following[name].recall) if name in evaluation.following else "",
        )
        for name, q in evaluation.methods.items()
    ]  # fmt: skip


ACTIVE_COLUMNS = ("batch", "method", "touched", "predicted", "recall", "precision", "Jaccard")


def active_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row per batch size and method, by the union of the tokens' top-k."""
    sizes = range(len(next(iter(evaluation.methods.values())).active))
    return [_active_row(name, quality.active[i]) for i in sizes for name, quality in evaluation.methods.items()]


def _active_row(name: str, active: ActiveSets) -> tuple[str, ...]:
    found: SetAccuracy = active.top_k
    parts = (found.recall, found.precision, found.jaccard)
    return (f"{active.batch_size}", name, f"{active.touched:.1f}", f"{active.predicted:.1f}", *map(_percent, parts))


def layer_columns(evaluation: Evaluation) -> tuple[str, ...]:
    """Of `layer_rows`."""
    return ("layer", *evaluation.methods)


def layer_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row per MoE layer: each method's recall with top-k predicted."""
    by_method = [_layers(quality) for quality in evaluation.methods.values()]
    return [(f"{i}", *map(_percent, row)) for i, row in enumerate(zip(*by_method, strict=True))]


def _layers(quality: Quality) -> tuple[float, ...]:
    return quality.top_k.layer_recall


def _percent(share: float) -> str:
    return f"{share:.1%}"

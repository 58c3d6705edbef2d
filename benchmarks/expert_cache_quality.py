"""Hit rates of the expert cache's policies and what regrouping saves, on a recorded trace and its predictions.

python benchmarks/expert_cache_quality.py --trace traces/test.npz --predictions predictions.npz --output FILE.json

Hit rates: decode passes of 4 and 16 prompts, slots for a half and a quarter of the experts. `copies` is how many
experts the link brings ahead from one gate to the next while the pass does not wait; an expert is a hit only if its
copy was over by its gate. "any": no limit, what the predictions allow and no link does. "true paths": the experts that
the pass and the next one will really choose as predictions; what is left to gain by predicting better. "of the pass
alone": the same predictions without what they say of the next pass. Belady knows the future and
copies nothing ahead: with copies ahead a cache can pass it.
Regrouping: two adjacent batches by predicted paths, measured by the experts that they then touch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import this_machine
from numpy.typing import NDArray

from hrm.errors import HrmError
from hrm.predict.cache_plan import CachePolicy
from hrm.predict.cache_replay import CacheReplay, replay, true_predictions
from hrm.predict.decode_passes import decode_passes
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_demand import pass_demand
from hrm.predict.routing_hit_rates import hit_rate_of
from hrm.predict.routing_predictions import load_predictions
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from runtime.experts.predictor_metrics import chosen_mask, top_k_mask
from runtime.experts.token_scheduler import distinct_experts, regroup

BATCHES = (4, 16)
SHARES = (0.5, 0.25)
COPIES: tuple[float | None, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, None)
TRUE_COPIES: tuple[float | None, ...] = (2.0, 4.0)
PLAIN: tuple[CachePolicy, ...] = ("lru", "lfu", "static")


def hit_rates(trace: RoutingTrace, predictions: PathPredictions, batch: int, share: float) -> dict[str, Any]:
    """Of every policy at equal slots, and the experts copied per pass."""
    slots = round(share * trace.num_experts)
    best = hit_rate_of(pass_demand(trace, batch), slots, "belady")
    found = {
        name: {"hit_rate": run.hit_rate, "copied_per_pass": run.fetched + run.prefetched, "wasted": run.wasted}
        for name, run in replays(trace, predictions, batch, slots).items()
    }
    return {"batch": batch, "slots_per_layer": slots, "belady": best, **found}


def replays(trace: RoutingTrace, predictions: PathPredictions, batch: int, slots: int) -> dict[str, CacheReplay]:
    """Plain policies, the predictive cache, and the same given the truth."""
    runs: dict[str, CacheReplay] = {policy: replay(trace, batch, slots, policy) for policy in PLAIN}
    given_by_name = (
        ("predictive", predictions, COPIES),
        ("of the pass alone", PathPredictions(predictions.now), TRUE_COPIES),
        ("true paths", true_predictions(trace), TRUE_COPIES),
    )
    for name, given, links in given_by_name:
        for copies in links:
            ahead = "any" if copies is None else f"{copies:g}"
            runs[f"{name}, {ahead} copies"] = replay(trace, batch, slots, "predictive", given, copies)
    return runs


def regrouping(trace: RoutingTrace, predictions: PathPredictions, batch: int) -> dict[str, Any]:
    """Distinct experts per layer and batch before and after, over all passes of pairs of adjacent batches."""
    passes = decode_passes(trace, 2 * batch)
    before, after = [], []
    for rows in passes.batches():
        if len(rows) < 2 * batch:
            continue  # a prompt has ended
        paths = chosen_mask(trace.experts[rows], trace.num_experts)
        predicted = top_k_mask(predictions.now[rows].astype(np.float32), trace.experts.shape[2])
        given: list[NDArray[np.intp]] = [np.arange(batch), np.arange(batch, 2 * batch)]
        before.append(distinct_experts(paths, given).mean())
        after.append(distinct_experts(paths, regroup(predicted, (batch, batch))).mean())
    return {
        "batch": batch, "passes": len(before), "distinct_before": float(np.mean(before)),
        "distinct_after": float(np.mean(after)), "saved": 1 - float(np.mean(after) / np.mean(before)),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Hit rates as Markdown."""
    names = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    lines = [f"| batch, slots per layer | {' | '.join(names)} | Belady |", "|---|" + "---:|" * (len(names) + 1)]
    for row in rows:
        rates = " | ".join(f"{row[name]['hit_rate']:.1%}" for name in names)
        lines.append(f"| {row['batch']}, {row['slots_per_layer']} | {rates} | {row['belady']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Both measurements, printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    try:
        trace = load_routing_trace(args.trace, None)
        predictions = load_predictions(args.predictions, trace)
        rates = [hit_rates(trace, predictions, batch, share) for batch in BATCHES for share in SHARES]
        groups = [regrouping(trace, predictions, batch) for batch in BATCHES]
    except HrmError as error:
        raise SystemExit(f"expert_cache_quality: {error}") from None
    print(table(rates))
    for row in groups:
        distinct = f"{row['distinct_before']:.2f} distinct experts a layer"
        print(f"batch {row['batch']}: {distinct}, {row['saved']:.1%} fewer regrouped")
    if args.output:
        report = {"machine": this_machine(), "model": trace.model, "hit_rates": rates, "regrouping": groups}
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

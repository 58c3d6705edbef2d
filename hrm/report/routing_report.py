"""Statistics of a routing trace as plain data, for JSON."""

from dataclasses import asdict
from typing import Any

from hrm.predict.routing_skew import TOP_SHARES
from hrm.predict.routing_stats import RoutingStats


def routing_report(stats: RoutingStats) -> dict[str, Any]:
    """Everything; shares and hit rates are ratios in [0, 1], lists by layer count MoE layers."""
    return {
        "model": stats.model,
        "tokens": stats.tokens,
        "prompts": stats.prompts,
        "num_experts": stats.num_experts,
        "top_k": stats.top_k,
        "frequency": stats.frequency.tolist(),
        "top_shares": list(TOP_SHARES),
        "skew": [asdict(layer) for layer in stats.skew],
        "distinct_experts": [asdict(each) for each in stats.distinct],
        "reuse_distance": [asdict(each) for each in stats.reuse],
        "hit_rates": [asdict(each) for each in stats.hits],
    }

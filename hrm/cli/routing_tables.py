"""Tables of `hrm routing`."""

from __future__ import annotations

from collections.abc import Sequence

from hrm.cli.output import print_table, print_text
from hrm.predict.routing_hit_rates import NAMES, HitRates
from hrm.predict.routing_reuse import DistinctExperts, ReuseDistance
from hrm.predict.routing_skew import TOP_SHARES
from hrm.predict.routing_stats import RoutingStats

REUSE_SHOWN = (1, 2, 4, 8, 16)


def print_routing(stats: RoutingStats) -> None:
    """All of them."""
    layers = len(stats.skew)
    print_text(
        f"{stats.model}: {stats.tokens:,} tokens of {stats.prompts:,} prompts, {stats.top_k} of {stats.num_experts} "
        f"experts in {layers} MoE layers\n"
    )
    _print_skew(stats)
    _print_distinct(stats.distinct)
    _print_reuse(stats.reuse)
    for batch_size in dict.fromkeys(hits.batch_size for hits in stats.hits):
        _print_hits([hits for hits in stats.hits if hits.batch_size == batch_size], stats.num_experts)


def _print_skew(stats: RoutingStats) -> None:
    tops = tuple(f"{share:.0%}" for share in TOP_SHARES)
    columns = ("layer", "hot", "x even", *tops, "entropy", "Zipf S", "misfit")
    rows = [
        (str(i), str(s.hottest), f"{s.peak:.2f}", *(f"{top:.1%}" for top in s.top), f"{s.entropy:.3f}",
         f"{s.zipf_exponent:.2f}", f"{s.zipf_misfit:.1%}")
        for i, s in enumerate(stats.skew)
    ]  # fmt: skip
    print_table("Skew: the hottest expert; share of the choices that the top 10, 25, 50 % get", columns, rows)
    print_text(
        "Entropy: 1 is even. Misfit: share of choices that a Zipf law of exponent S puts elsewhere; it says nothing of "
        "which experts are hot, nor of tokens that choose alike.\n"
    )


def _print_distinct(distinct: Sequence[DistinctExperts]) -> None:
    rows = [
        (f"{d.batch_size:,}", f"{d.tokens:,.1f}", f"{_mean(d.measured):.1f}",
         f"{min(d.measured):.1f} - {max(d.measured):.1f}", f"{_mean(d.independent):.1f}", f"{d.uniform:.1f}")
        for d in distinct
    ]  # fmt: skip
    columns = ("batch", "tokens", "measured", "by layer", "independent", "uniform")
    print_table("Distinct experts per layer and decode pass", columns, rows)
    print_text("Independent: tokens that choose each expert as often as measured, each for itself.\n")


def _print_reuse(reuse: Sequence[ReuseDistance]) -> None:
    shown = [d for d in REUSE_SHOWN if any(d in r.distances for r in reuse)]
    rows = []
    for r in reuse:
        rows.append((f"{r.batch_size:,}", *(_within(r, r.within, d) for d in shown), f"{r.first:.2%}"))
        rows.append(("  independent", *(_within(r, r.independent, d) for d in shown), ""))
    columns = ("batch", *(f"<= {d}" for d in shown), "first uses")
    print_table("Reuse: passes since an expert's last use", columns, rows)


def _within(reuse: ReuseDistance, shares: Sequence[float], distance: int) -> str:
    return f"{shares[reuse.distances.index(distance)]:.1%}" if distance in reuse.distances else ""


def _print_hits(hits: Sequence[HitRates], num_experts: int) -> None:
    columns = ("slots per layer", *(NAMES[each.policy] for each in hits))
    rows = [
        (f"{slots:,} ({slots / num_experts:.0%})", *(f"{each.hit_rate[i]:.1%}" for each in hits))
        for i, slots in enumerate(hits[0].slots)
    ]
    print_table(f"Hit rate against cache size, batch {hits[0].batch_size:,} (* knows the trace)", columns, rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

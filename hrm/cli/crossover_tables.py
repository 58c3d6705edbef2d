"""The tables of `hrm crossover`, and of `hrm search --routing`."""

from hrm.cli.output import print_table, print_text
from hrm.report.crossover_report import describe_crossover, routed_shares, winner_name
from hrm.report.explain import describe_policy
from hrm.search.cached import CACHE_NAMES, CachedPolicy
from hrm.search.crossover import Crossover
from hrm.search.refine import Refined


def print_crossover(result: Crossover) -> None:
    """A line per batch size, a column per way of running it, and what wins."""
    modes = list(dict.fromkeys(mode for point in result.points for mode in point.cached))
    rows = [
        (
            f"{point.batch_size:,}",
            _rate(point.streaming_throughput),
            *(_rate(point.cached[m].generation_throughput if m in point.cached else 0.0) for m in modes),
            winner_name(point),
        )
        for point in result.points
    ]
    columns = ("batch", "streaming", *modes, "fastest")
    title = f"{result.rates.model.name} on {result.rates.machine.profile.title}, simulated tokens/s by kind of cache"
    print_table(title, columns, rows)
    print_text(describe_crossover(result))


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.2f}" if tokens_per_s else "-"


def print_cache_choice(result: Crossover) -> None:
    """The best of every kind of cache beside the best that streams, at the batch size that suits each."""
    point = result.points[-1]
    rows = [_streaming_row(point.streaming)] if point.streaming else []
    rows += [_cache_row(CACHE_NAMES[mode], entry) for mode, entry in point.cached.items()]
    columns = ("way", "N", "r_w", "in place", "ahead", "missed", "on CPU", "tokens/s")
    print_table("Expert caches against streaming, simulated", columns, rows)
    if point.streaming:
        print_text(f"Streaming: {describe_policy(point.streaming.policy)}")
    print_text(describe_crossover(result))


def _streaming_row(entry: Refined) -> tuple[str, ...]:
    policy, rate = entry.policy, entry.simulated.generation_throughput
    return ("streaming", f"{policy.batch_size:,}", f"{policy.weights_on_gpu:.3f}", "-", "-", "-", "-", f"{rate:,.2f}")


def _cache_row(name: str, entry: CachedPolicy) -> tuple[str, ...]:
    policy, shares = entry.policy, routed_shares(entry.stats, entry.policy)
    parts = (f"{shares[part]:.1%}" for part in ("hit_rate", "prefetched", "missed", "on_cpu"))
    return (
        name, f"{policy.batch_size:,}", f"{policy.weights_on_gpu:.3f}", *parts, f"{entry.generation_throughput:,.2f}"
    )  # fmt: skip

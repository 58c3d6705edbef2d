"""The table of simulated policies in `hrm search --refine`."""

from hrm.cli.output import print_table, print_text
from hrm.report.explain import describe_gap, describe_policy
from hrm.search.refine import Refined


def print_refined(refined: tuple[Refined, ...]) -> None:
    """Simulated throughputs, best first, beside what the roofs promised."""
    rows = [
        (
            entry.policy.schedule,
            describe_policy(entry.policy),
            f"{entry.policy.num_micro_batches} x {entry.policy.micro_batch_size:,}",
            f"{entry.simulated.closed_form:,.1f}",
            f"{entry.simulated.generation_throughput:,.1f}",
            f"{entry.simulated.share_of_roof:.1%}",
        )
        for entry in refined
    ]
    columns = ("schedule", "what runs where", "n x mu", "roofs", "simulated", "reached")
    print_table("The same policies simulated task by task", columns, rows, numeric_from=2)
    print_text(describe_gap(refined[0].gap) + "\n")

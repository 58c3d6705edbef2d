"""Sentences on how the published results compare with their predictions."""

from hrm.report.published import PublishedErrors


def describe_errors(errors: PublishedErrors) -> str:
    """The error statistics in one paragraph."""
    return (
        f"{errors.rows} rows: median absolute error {errors.median_absolute_error:.1%}, mean "
        f"{errors.mean_absolute_error:.1%}, median signed error {errors.median_error:+.1%}; "
        f"{errors.within_25_percent} rows within 25 %. Order of two systems right in {errors.ordered_pairs} of "
        f"{errors.pairs} pairs whose published values differ by more than 15 %."
    )


def residue() -> str:
    """What explains the rest; what each statement rests on is in docs/published.md."""
    return " ".join(_RESIDUE)


_RESIDUE = (
    "Predictions are too high where they are off, mostly on the T4 (S1). DeepSpeed shares with the others only",
    "the link and the clocks, and is predicted best on both machines: those are not what is missing. The others",
    "run all experts in one Triton kernel, for which the T4 has no asynchronous copies, and stage pageable",
    "weights through the CPU; how fast either runs there is not published, so both are taken at their roofs.",
    "Prefill shows the same on the L4: matrix products are taken at the base clock of a 72 W card without further",
    "losses. Padding of prompts and of the kernel's 64-row tiles is counted. Left out, since unpublished: page",
    "faults on the first use of KV memory, compilation in runs without warm-up, launches. Repeated runs of the",
    "artifact differ by up to 31 %.",
)

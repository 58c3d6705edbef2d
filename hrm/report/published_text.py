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


def describe_diagnosis(errors: PublishedErrors) -> str:
    """What a single unpublished rate would explain."""
    return (
        "Diagnosis, not prediction: were that kernel on the T4 as fast as the card's fp32 peak (8.1 TFLOP/s, an eighth "
        f"of its tensor peak), the median absolute error over all rows would be {errors.median_absolute_error:.1%}, "
        f"{errors.within_25_percent} rows within 25 %."
    )


def residue() -> str:
    """What explains the rest; what each statement rests on is in docs/published.md."""
    return " ".join(_RESIDUE)


_RESIDUE = (
    "Predictions are too high where they are off, mostly on the T4 (S1). DeepSpeed is predicted best on both",
    "machines; it shares the link, the clocks and the memory rate with the others, so those are not what is",
    "missing. The others run all experts in one Triton kernel; how fast it computes on a T4, which has no",
    "asynchronous copies, is not published, so it is taken at the roof. Prefill shows the same on the L4 to a",
    "lesser degree: matrix products are taken at the base clock of a 72 W card without further losses, and",
    "staging copies at the roof of DRAM. Padding of prompts and of the kernel's 64-row tiles is counted. Left",
    "out, since unpublished: page faults on the first use of KV memory, compilation in runs without warm-up,",
    "launches. Repeated runs of the artifact differ by up to 31 %.",
)

"""`hrm search`: the provably best policy, what binds it, and what to upgrade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt

if TYPE_CHECKING:
    from hrm.search.search import SearchResult, Verification


def search(
    profile: opt.ProfileOption,
    model: opt.ModelOption = opt.DEFAULT_MODEL,
    workload: opt.WorkloadOption = None,
    prompt_len: opt.PromptLenOption = None,
    prompt_len_max: opt.PromptLenMaxOption = None,
    gen_len: opt.GenLenOption = None,
    padded: opt.PaddedOption = False,
    dtype: opt.DtypeOption = None,
    kv_dtype: opt.KvDtypeOption = None,
    schedule: opt.ScheduleOption = "auto",
    top: Annotated[int, typer.Option(min=1, max=50, help="Best policies of this many placements.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Write the best policy as YAML.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also enumerate every cell, and compare (slow).")] = False,
    json: opt.JsonOption = False,
) -> None:
    """Find the policy with the highest predicted generation throughput that fits in memory, proven optimal.

    Without --model and --workload: mixtral-8x7b, and MT-Bench (prompts of 77 tokens on average, 418 at most, 128
    generated).
    """
    from hrm.cli.output import print_json
    from hrm.cli.search_tables import print_search
    from hrm.report.search_report import search_report
    from hrm.search.search import search_policy
    from hrm.search.sensitivity import sensitivity
    from hrm.spec.policy_file import save_policy

    rates = opt.read_rates(
        profile, model, opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded), dtype, kv_dtype
    )
    result = search_policy(rates, schedule, top)
    if output is not None:
        save_policy(result.policy, output)
        print(f"Wrote {output}", file=sys.stderr)
    verification = _verify(result) if verify else None
    rows = sensitivity(result)
    if json:
        print_json(search_report(result, rows, verification))
    else:
        print_search(result, rows, verification)
    if verification is not None and not verification.agrees:
        raise typer.Exit(code=1)


def _verify(result: SearchResult) -> Verification:
    from hrm.cli.progress import progress_bar
    from hrm.search.search import verify

    with progress_bar("enumerating every policy cell") as update:
        return verify(result, update)

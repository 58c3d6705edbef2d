"""`hrm search`: the provably best policy, what binds it, and what to upgrade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt

if TYPE_CHECKING:
    from hrm.search.refine import Refined
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
    refine: Annotated[
        int, typer.Option(min=0, max=50, help="Simulate this many of the best policies and rank them again; 0: none.")
    ] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Also enumerate every cell, and compare (slow).")] = False,
    json: opt.JsonOption = False,
) -> None:
    """Find the policy with the highest predicted generation throughput that fits in memory, proven optimal.

    The optimum is that of the roofs; --refine simulates the best of them, and saves the one that simulates fastest.

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
    result = search_policy(rates, schedule, max(top, refine))
    refined = _refine(result, refine) if refine else ()
    if output is not None:
        save_policy(refined[0].policy if refined else result.policy, output)
        print(f"Wrote {output}", file=sys.stderr)
    verification = _verify(result) if verify else None
    rows = sensitivity(result)
    if json:
        print_json(search_report(result, rows, verification, refined))
    else:
        print_search(result, rows, verification, refined)
    if verification is not None and not verification.agrees:
        raise typer.Exit(code=1)


def _refine(result: SearchResult, count: int) -> tuple[Refined, ...]:
    from dataclasses import replace

    from hrm.cli.progress import progress_bar
    from hrm.search.refine import refine

    with progress_bar("policies simulated") as update:
        return refine(replace(result, candidates=result.candidates[:count]), update)


def _verify(result: SearchResult) -> Verification:
    from hrm.cli.progress import progress_bar
    from hrm.search.search import verify

    with progress_bar("enumerating every policy cell") as update:
        return verify(result, update)

"""`hrm roofline`: the machine's roofs with the operators of a model under them, as a figure or as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import options as opt


def roofline(
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
    policy: Annotated[Path | None, typer.Option(help="Place the operators of this policy; default: search.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Draw the hierarchical roofline of a machine with the best policy's operators placed under it."""
    from hrm.cli.output import print_json, print_text
    from hrm.cli.roofline_tables import print_roofline
    from hrm.report.roofline_report import roofline_report
    from hrm.search.search import search_policy
    from hrm.spec.policy_file import load_policy

    rates = opt.read_rates(
        profile, model, opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded), dtype, kv_dtype
    )
    chosen = load_policy(policy) if policy else search_policy(rates, schedule).policy
    if output is not None:
        from hrm.plotting.figures import roofline_figure, save_figure

        save_figure(roofline_figure(rates, chosen), output)
        if not json:
            print_text(f"Wrote {output}")
    if json:
        print_json(roofline_report(rates, chosen))
    elif output is None:
        print_roofline(rates, chosen)

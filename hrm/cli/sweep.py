"""`hrm sweep`: the best policy over a range of any machine, workload or policy field."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from hrm.errors import HrmError

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    profile: opt.ProfileOption,
    vary: Annotated[
        list[str], typer.Option("--vary", help="FIELD=START:STOP:COUNT or FIELD=A,B,C; repeat for a grid.")
    ],
    model: opt.ModelOption = opt.DEFAULT_MODEL,
    workload: opt.WorkloadOption = None,
    prompt_len: opt.PromptLenOption = None,
    prompt_len_max: opt.PromptLenMaxOption = None,
    gen_len: opt.GenLenOption = None,
    padded: opt.PaddedOption = False,
    dtype: opt.DtypeOption = None,
    kv_dtype: opt.KvDtypeOption = None,
    schedule: opt.ScheduleOption = "auto",
    output: Annotated[Path | None, typer.Option(help="Write .csv or .parquet instead of printing.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Search over a range, e.g. --vary "cpu_memory=96GiB:512GiB:8" or --vary "htod=0.5x,1x,2x".

    Machine fields: gpu_compute, gpu_memory_bandwidth, gpu_memory, cpu_compute, cpu_memory_bandwidth, cpu_memory, htod,
    dtoh, disk, gpu_to_gpu. Workload fields: prompt_len, prompt_len_max, gen_len. Policy fields (others kept as in the
    best policy): batch_size, micro_batch_size, attention_on_gpu, experts_on_gpu, weights_on_gpu, kv_on_gpu,
    dense_weights_on_gpu, weights_on_disk.
    """
    from hrm.cli.output import print_json
    from hrm.cli.progress import progress_bar
    from hrm.search.sweep import sweep as run_sweep
    from hrm.search.vary import parse_axis

    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise HrmError(f"--output {output}: end the name in .csv or .parquet")
    axes = [parse_axis(text) for text in vary]
    rates = opt.read_rates(
        profile, model, opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded), dtype, kv_dtype
    )
    with progress_bar("searching") as update:
        table = run_sweep(rates, axes, schedule, update)
    if output is not None:
        _write(table, output)
        print(f"Wrote {output}", file=sys.stderr)
    if json:
        print_json(table.to_dict(orient="records"))
    elif output is None:
        print(table.convert_dtypes().to_string(index=False))


def _write(table: pd.DataFrame, output: Path) -> None:
    try:
        if output.suffix == ".csv":
            table.to_csv(output, index=False)
        else:
            table.to_parquet(output, index=False)
    except OSError as error:
        raise HrmError(f"--output {output}: cannot be written ({error.strerror or error})") from None

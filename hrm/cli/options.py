"""Options that several subcommands share, and the inputs they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hrm.errors import HrmError, WorkloadError

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.spec.workload import Workload

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_WORKLOAD = "mtbench"

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="Machine: a YAML file, or a shipped name.")]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model: a shipped name, or a path to config.json or its folder.")
]
WorkloadOption = Annotated[
    str | None,
    typer.Option("--workload", help=f"A shipped name, YAML, or JSONL of prompts. Default: {DEFAULT_WORKLOAD}."),
]
PromptLenOption = Annotated[float | None, typer.Option("--prompt-len", help="Average prompt length in tokens.")]
PromptLenMaxOption = Annotated[int | None, typer.Option("--prompt-len-max", help="Longest prompt in tokens.")]
GenLenOption = Annotated[int | None, typer.Option("--gen-len", help="Tokens generated per request.")]
PaddedOption = Annotated[bool, typer.Option("--padded", help="Pad every prompt to the longest.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="Format of all weights: fp32, bf16, fp16, fp8, int8, int4, mxfp4.")
]
KvDtypeOption = Annotated[str | None, typer.Option("--kv-dtype", help="Format of the KV cache, as --dtype.")]
ScheduleOption = Annotated[
    str,
    typer.Option(
        "--schedule",
        help="auto (the best of all), cgopipe, module_batched, flexgen, flexgen_cpu_attention, fastdecode, "
        "layer_streaming or expert_cache.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def read_workload(
    workload: str | None, prompt_len: float | None, prompt_len_max: int | None, gen_len: int | None, padded: bool
) -> Workload:
    """The workload that the options describe.

    Raises:
        WorkloadError: options that contradict each other, or impossible lengths.
        UnknownNameError: an unknown workload.
    """
    from hrm.spec.workload import make_workload
    from hrm.spec.workload_file import load_workload

    if workload is not None and not workload.strip():
        raise WorkloadError("--workload is empty; leave it out for the default")
    if prompt_len is None:
        if prompt_len_max is not None:
            raise WorkloadError("--prompt-len-max needs --prompt-len, the average beside it")
        return load_workload(workload or DEFAULT_WORKLOAD, gen_len, padded or None)
    if workload is not None:
        raise WorkloadError("give --workload or --prompt-len, not both")
    if gen_len is None:
        gen_len = load_workload(DEFAULT_WORKLOAD).gen_len
    return make_workload(gen_len, prompt_len, prompt_len_max, padded, where="options")


def read_rates(
    profile: str, model: str, workload: Workload, dtype: str | None = None, kv_dtype: str | None = None
) -> Rates:
    """The cost model of the named profile and model."""
    from hrm.search.search import make_rates
    from hrm.spec.hardware import load_profile
    from hrm.spec.model_config import load_model
    from hrm.spec.precision import choose_precision

    for name, value in (("--dtype", dtype), ("--kv-dtype", kv_dtype)):
        if value is not None and not value.strip():
            raise HrmError(f"{name} is empty; leave it out for the default")
    machine, spec = load_profile(profile), load_model(model)
    return make_rates(machine, spec, workload, choose_precision(spec, machine, dtype, kv_dtype))

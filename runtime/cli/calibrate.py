"""`hrm calibrate`: measures this machine and writes its hardware profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import options as opt


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Profile to write, named after the file.")],
    gpu_memory: Annotated[
        str | None, typer.Option(help='Use no more GPU memory than, e.g., "16GiB"; stands for a smaller card.')
    ] = None,
    cpu_memory: Annotated[
        str | None, typer.Option(help="CPU memory a program may use, where the system reports another amount.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default the GPU where there is one.")] = None,
    disk: Annotated[Path | None, typer.Option(help="Also measure the disk that holds this directory.")] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Take matrix and attention shapes from this model.")
    ] = opt.DEFAULT_MODEL,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32; by default bf16 where the device has it, else fp16.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes and few repeats: a trial of seconds, not a measurement.")
    ] = False,
) -> None:
    """Measure this machine in under two minutes and write its hardware profile.

    Links, memory bandwidths, matrix products, expert FFNs and attention on both processors, and what CPU attention and
    copies leave each other. Nothing else should run meanwhile. Without a GPU the CPU plays it, as the profile states.
    """
    from hrm.cli.output import check_writable, print_table, print_text
    from hrm.cli.progress import progress_bar
    from runtime.cli.requirements import require_runtime

    require_runtime()
    check_writable(output)
    from runtime.calibration.calibrate import Options, calibrate_machine
    from runtime.calibration.profile import write_profile
    from runtime.calibration.tables import COLUMNS, result_rows

    limits = (_bytes(gpu_memory, "--gpu-memory"), _bytes(cpu_memory, "--cpu-memory"))
    options = Options(*limits, device, dtype, model, disk, quick)
    with progress_bar("measuring this machine") as update:
        calibration = calibrate_machine(options, update)
    write_profile(calibration, output)
    machine = calibration.machine
    name = machine.gpu_name if machine.has_gpu else f"{machine.cpu_name} in place of a GPU"
    print_table(f"{name}, {calibration.dtype}, shapes of {calibration.model}", COLUMNS, result_rows(calibration))
    if machine.is_busy:
        print_text(f"Other work was running (load average {machine.load:.1f}): the numbers are too low; measure again.")
    print_text(f"Wrote {output}; see it with: hrm profiles show {output}")


def _bytes(text: str | None, option: str) -> int | None:
    from hrm.spec.units import parse_quantity

    return None if text is None else int(parse_quantity(text, "bytes", option))

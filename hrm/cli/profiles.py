"""`hrm profiles`: the machines that ship with the package, and any profile file in full."""

from typing import Annotated

import typer

from hrm.cli import options as opt

app = typer.Typer(help="Hardware profiles.", no_args_is_help=True)


@app.command("list")
def list_profiles(json: opt.JsonOption = False) -> None:
    """List the shipped machines."""
    from hrm.cli.output import print_json, print_table
    from hrm.spec.hardware import load_profile, shipped_profiles
    from hrm.spec.units import format_bytes, format_rate

    profiles = {name: load_profile(name) for name in shipped_profiles()}
    if json:
        print_json([{"name": n, "title": p.title, "device_count": p.device_count} for n, p in profiles.items()])
        return
    rows = [
        (
            name, p.title, format_bytes(p.gpu.memory_usable.value * p.device_count),
            format_bytes(p.cpu.memory_usable.value), format_rate(p.achieved_link_bandwidth("htod")),
        )
        for name, p in profiles.items()
    ]  # fmt: skip
    columns = ("name", "machine", "GPU memory", "CPU memory", "HTOD per GPU")
    print_table("Shipped hardware profiles (usable memory, achieved link)", columns, rows, numeric_from=2)


@app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="A shipped name or a YAML file.")], json: opt.JsonOption = False
) -> None:
    """Show every number of one machine with its kind and source."""
    from hrm.cli.output import print_json, print_table, print_text
    from hrm.report.profile_report import profile_numbers
    from hrm.spec.hardware import load_profile

    profile = load_profile(name)
    if json:
        print_json(profile.model_dump())
        return
    print_table(profile.title, ("number", "value", "kind", "source"), profile_numbers(profile), numeric_from=9)
    left = ", ".join(profile.uncalibrated_parts)
    print_text(f"Taken at the roof for want of a measurement: {left or 'nothing'}.")

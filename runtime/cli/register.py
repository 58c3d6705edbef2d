"""Adds the runtime's subcommands to the `hrm` command; importing this loads no torch."""

import typer

from runtime.cli.calibrate import calibrate
from runtime.cli.predictor import app as predictor
from runtime.cli.run import run
from runtime.cli.validate import validate


def register(app: typer.Typer) -> None:
    """What the entry point group "hrm.commands" names."""
    app.command("calibrate")(calibrate)
    app.command("run")(run)
    app.command("validate")(validate)
    app.add_typer(predictor, name="predictor")

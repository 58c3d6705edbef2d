"""Subcommands of packages beside this one (the runtime's), found through the entry point group "hrm.commands"."""

from importlib.metadata import entry_points

import typer

GROUP = "hrm.commands"


def add_commands(app: typer.Typer) -> None:
    """Lets each entry point add its commands; importing them is light, what they need is imported when they run."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        entry.load()(app)

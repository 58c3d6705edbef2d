"""Prints results: JSON to stdout, tables through rich, progress to stderr."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrm.errors import HrmError


def check_writable(*paths: Path | None) -> None:
    """Refuses files that cannot be written before anything is computed for them; None is no file.

    Raises:
        HrmError: the folder does not exist, or the path is a folder.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise HrmError(f"{path}: cannot be written (no such folder, or a folder itself); choose another place")


def check_figure(path: Path | None) -> None:
    """As `check_writable`, and the name must end as a figure's.

    Raises:
        HrmError: see there.
    """
    check_writable(path)
    if path is not None:
        from hrm.plotting.figures import check_suffix

        check_suffix(path)


def print_json(data: Any) -> None:
    """JSON with two-space indent; a number that JSON cannot hold (inf, nan) becomes null."""
    print(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int = 1) -> None:
    """A table; columns from `numeric_from` on are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= numeric_from else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(title, style="bold", highlight=False, markup=False)
    console.print(table)


def print_text(text: str) -> None:
    """A line or paragraph, wrapped to the terminal."""
    from rich.console import Console

    Console().print(text, highlight=False, markup=False)

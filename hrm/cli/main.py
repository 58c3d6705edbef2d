"""The `hrm` command: one subcommand per file, errors as one line on stderr, no traceback for bad input."""

import gc
import sys

import typer

from hrm.cli import compare, crossover, models, profiles, published, roofline, routing, search, simulate, sweep
from hrm.cli.plugins import add_commands
from hrm.errors import HrmError, InfeasibleError

# Graphs are hundreds of thousands of small objects without cycles: looked through at the usual rate, they cost a fifth
# of a simulation.
GC_THRESHOLDS = (50_000, 20, 50)
EXIT_BAD_INPUT = 1
EXIT_INFEASIBLE = 3  # 2 is the parser's own, for wrong options

app = typer.Typer(
    name="hrm",
    help="Hierarchical roofline model and exact policy search for Mixture-of-Experts models on small GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("search")(search.search)
app.command("roofline")(roofline.roofline)
app.command("simulate")(simulate.simulate)
app.command("compare")(compare.compare)
app.command("published")(published.published)
app.command("sweep")(sweep.sweep)
app.command("crossover")(crossover.crossover)
app.command("routing")(routing.routing)
app.add_typer(profiles.app, name="profiles")
app.add_typer(models.app, name="models")
add_commands(app)


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 bad input, 2 wrong options, 3 nothing fits in memory."""
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        app()
    except HrmError as error:
        print(f"hrm: {error}", file=sys.stderr)
        sys.exit(EXIT_INFEASIBLE if isinstance(error, InfeasibleError) else EXIT_BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_BAD_INPUT)
    except OSError as error:
        print(f"hrm: cannot write the output ({error.strerror or error})", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("hrm: interrupted", file=sys.stderr)
        sys.exit(130)

"""`hrm models`: the model configurations that ship with the package, and any config.json in full."""

from typing import Annotated

import typer

from hrm.cli import options as opt

app = typer.Typer(help="Model configurations.", no_args_is_help=True)


@app.command("list")
def list_models(json: opt.JsonOption = False) -> None:
    """List the shipped models."""
    from hrm.cli.output import print_json, print_table
    from hrm.report.model_report import model_report
    from hrm.spec.model_config import load_model, shipped_models

    reports = [model_report(load_model(name)) for name in shipped_models()]
    if json:
        print_json(reports)
        return
    rows = [
        (
            r["name"], f"{r['num_parameters'] / 1e9:,.2f} B", f"{r['num_active_parameters'] / 1e9:,.2f} B",
            str(r["num_layers"]), f"{r['num_experts']} / {r['top_k']}" if r["num_experts"] else "dense",
            f"{r['kv_bytes_per_token'] / 1024:,.1f} KiB",
        )
        for r in reports
    ]  # fmt: skip
    print_table("Shipped models", ("name", "parameters", "active", "layers", "experts / top k", "KV per token"), rows)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="A shipped name, or a path to config.json or its folder.")],
    json: opt.JsonOption = False,
) -> None:
    """Show parameter counts and KV size of one model."""
    from hrm.cli.output import print_json, print_table
    from hrm.report.model_report import model_report
    from hrm.spec.model_config import load_model

    report = model_report(load_model(name))
    if json:
        print_json(report)
        return
    flat = {k: v for k, v in report.items() if k != "parameters"}
    flat |= {f"parameters: {k}": v for k, v in report["parameters"].items()}
    rows = [(k.replace("_", " "), f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v))
            for k, v in flat.items()]  # fmt: skip
    print_table(report["name"], ("", ""), rows)

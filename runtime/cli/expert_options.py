"""Options of `hrm run` about which experts tokens choose."""

from pathlib import Path
from typing import Annotated

import typer

TraceRoutingOption = Annotated[
    Path | None, typer.Option(help="Write which experts every token chose (.npz); hrm routing reads it.")
]
PredictorOption = Annotated[
    Path | None, typer.Option(help="Routing-path predictor (hrm predictor train), for a predictive expert cache.")
]
TokenSchedulerOption = Annotated[
    bool, typer.Option("--token-scheduler", help="Two batches in flight, regrouped by the experts they will touch.")
]

"""The public tables as rows that laws are fitted to, each with the columns that a user would name."""

from __future__ import annotations

from embedlab.scaling.observations import Observation, by_method
from embedlab.scaling.tables import Columns, read_table
from helpers.tables import PUBLISHED

_FINE_TUNING = Columns(parameters="size", tokens="columns", backbone="config name", family="config name")
COLUMNS = {
    "chinchilla_epoch/svg_extracted_data": Columns(parameters="Model Size", flops="Training FLOP"),
    "gadre/gadre_104_runs": Columns(
        parameters="N", tokens="D", loss="loss_c4_val", method="dataset_name", backbone="model_name"
    ),
    "rectified_ft/flan": _FINE_TUNING,
    "rectified_ft/gigaword": _FINE_TUNING,
    "rectified_ft/wmt19": _FINE_TUNING,
}


def published(name: str) -> dict[str, list[Observation]]:
    """By method, which in one of the tables is a data set."""
    return by_method(read_table(PUBLISHED / f"{name}.csv", COLUMNS[name]))

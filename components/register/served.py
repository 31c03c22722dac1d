"""What evaluate chose to serve: a model, how numbers are read from it, and its answers to the test images."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from components.settings import Reader, Settings
from components.shared.model.validation_file import fitted_rule
from components.shared.reporting.predictions import TEXT, predictions_file, read_predictions, to_predictions
from components.shared.scoring.errors import Array, Predictions


@dataclass(frozen=True)
class Served:
    """What evaluate chose to serve.

    Attributes:
        model: `sft` or `grpo`, which is also the port of its weights.
        way: how it is read, a way of `components.shared.reporting.predictions`.
        weights: the model folder.
        table: its predictions of the test images.
        predictions: the served answers of that table.
        reader: how it reads, as stored with the model.
    """

    model: str
    way: str
    weights: Path
    table: pa.Table
    predictions: Predictions
    reader: Reader

    @classmethod
    def read(cls, settings: Settings, evaluate: Path, weights: Mapping[str, Path]) -> "Served":
        """Reads evaluate's choice.

        Args:
            weights: model -> folder.
        """
        chosen = json.loads((evaluate / "served.json").read_text(encoding="utf-8"))
        model, way = chosen["model"], chosen["way"]
        table = read_predictions(predictions_file(evaluate, model))
        balance = None
        if way != TEXT:
            balance = fitted_rule(weights[model], settings.answer, settings.registry.tolerance_many).balance.value
        reader = settings.reader(balance)
        return cls(model, way, weights[model], table, to_predictions(table, settings.task, way), reader)

    def expected(self) -> dict[str, list[float | None]]:
        """Columns that the registered model must give for the test images."""
        if self.way == TEXT:
            return {"value": self.table["value"].to_pylist()}
        columns = {"value": self.way, "low": "low", "high": "high", "mass": "mass"}
        return {name: self.table[column].to_pylist() for name, column in columns.items()}

    @property
    def mass(self) -> Array | None:
        """Probability of any number `(N,)`, where the answers come from the distribution."""
        return None if self.way == TEXT else self.table["mass"].to_numpy(zero_copy_only=False)

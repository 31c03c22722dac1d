"""The registered model: takes an image and a question, returns a number with its interval.

MLflow stores this file and runs it where the model is loaded (models-from-code), so nothing is pickled. The modules of
this repository that it imports are stored with it, so the model can be loaded without a checkout.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    import pyarrow as pa


class ImageRegressor(PythonModel):
    """Predicts one number for each image."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads weights, processor and the distributions over the validation images; uses the accelerator, if any."""
        from components.settings import Answer, Model, Task
        from components.shared.model.device import device
        from components.shared.model.loading import load
        from components.shared.model.number_reader import NumberReader

        config, folder = context.model_config, Path(context.artifacts["model"])
        self._config = config
        loading = Model(
            name=str(folder),
            revision=None,
            dtype=config["dtype"],
            attention=config["attention"],
            compile=False,
            max_pixels=None,  # the stored processor already has this limit
            freeze_vision=False,
            lora=None,
            tiny=None,
        )
        self._task, answer = Task.model_validate(config["task"]), Answer.model_validate(config["answer"])
        self._model: Any
        self._reader: NumberReader | None = None
        if answer.source == "distribution":
            # The balance is a number here, so the tolerance decides nothing.
            self._reader = NumberReader.load(folder, loading, self._task, answer, tolerance=0.0)
            self._model, self._processor = self._reader.model, self._reader.processor
        else:
            self._model, self._processor = load(folder, loading)
        self._model.to(device())

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predicts one number for each image.

        Args:
            model_input: one row per image. `image`: the bytes of an encoded file (PNG, JPEG, ...); `question`: text; if
                it is missing or null, the task's question is used.

        Returns:
            One row per image, under the input's index. `value`: the number. `low`, `high`: ends of its interval.
            `mass`: the probability that the model gives to all numbers together. Where the settings ask for the model's
            text, `value` is NaN if the text has no number within the task's range, and the other columns are NaN.
        """
        parts = list(self._from_text(model_input) if self._reader is None else self._from_distribution(model_input))
        columns = ["value", "low", "high", "mass"]
        if not parts:
            return pd.DataFrame({name: pd.Series(dtype=float) for name in columns}, index=model_input.index)
        return pd.concat(parts, ignore_index=True)[columns].set_axis(model_input.index)

    def _from_distribution(self, model_input: pd.DataFrame) -> Iterator[pd.DataFrame]:
        assert self._reader is not None
        for _, read in self._reader.read([self._rows(model_input)], self._config["batch_size"]):
            yield pd.DataFrame({"value": read.value, "low": read.low, "high": read.high, "mass": read.mass})

    def _from_text(self, model_input: pd.DataFrame) -> Iterator[pd.DataFrame]:
        from components.shared.model.generation import generate_answers
        from components.shared.scoring.answers import parse_answers

        size, length = self._config["batch_size"], self._config["max_new_tokens"]
        for _, texts in generate_answers(self._model, self._processor, [self._rows(model_input)], size, length):
            values = parse_answers(texts, self._task.low, self._task.high)
            yield pd.DataFrame({"value": values, "low": float("nan"), "high": float("nan"), "mass": float("nan")})

    def _rows(self, model_input: pd.DataFrame) -> "pa.RecordBatch":
        import pyarrow as pa

        texts = (
            model_input["question"] if "question" in model_input else pd.Series(None, model_input.index, dtype=object)
        )
        questions = [self._task.question if pd.isna(text) else str(text) for text in texts]
        images = [{"bytes": bytes(data)} for data in model_input["image"]]
        return pa.record_batch(
            {
                "id": pa.array([str(index) for index in range(len(images))]),
                "image": pa.array(images, pa.struct([("bytes", pa.binary())])),
                "question": pa.array(questions, pa.string()),
            }
        )


set_model(ImageRegressor())

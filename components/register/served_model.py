"""The registered model: an image and a question in, a number out.

MLflow stores this file as it stands and runs it where the model is loaded (models-from-code): nothing is pickled. Its
imports of ours travel along, so it does not need this repository.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class ImageRegressor(PythonModel):
    """Reads one number off each image."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads weights and processor, onto the accelerator where there is one."""
        from components.settings import Model
        from components.shared.model.device import device
        from components.shared.model.loading import load

        chosen, folder = context.model_config, context.artifacts["model"]
        loading = Model(
            name=folder,
            revision=None,
            dtype=chosen["dtype"],
            attention=chosen["attention"],
            compile=False,
            max_pixels=None,  # the processor in the folder keeps to it
            freeze_vision=False,
            lora=None,
            tiny=None,
        )
        self._model: Any
        self._model, self._processor = load(folder, loading)
        self._model.to(device())

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answers.

        Args:
            model_input: a row an image. `image`: the encoded file (PNG, JPEG, ...), bytes; `question`: text, may be
                missing or null for the task's own.

        Returns:
            `value`, a row an image: the number, NaN where the model's answer holds none within the task's range.
        """
        import pyarrow as pa

        from components.shared.model.generation import answer
        from components.shared.scoring.answers import parse_answers

        chosen = context.model_config
        asked = (
            model_input["question"] if "question" in model_input else pd.Series(None, model_input.index, dtype=object)
        )
        questions = [chosen["question"] if pd.isna(text) else str(text) for text in asked]
        images = [{"bytes": bytes(data)} for data in model_input["image"]]
        rows = pa.record_batch(
            {
                "id": pa.array([str(place) for place in range(len(images))]),
                "image": pa.array(images, pa.struct([("bytes", pa.binary())])),
                "question": pa.array(questions, pa.string()),
            }
        )
        texts: list[str] = []
        for _, found in answer(self._model, self._processor, [rows], chosen["batch_size"], chosen["max_new_tokens"]):
            texts += found
        return pd.DataFrame({"value": parse_answers(texts, chosen["low"], chosen["high"])})


set_model(ImageRegressor())

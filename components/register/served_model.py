"""The registered model: takes an image and a question, returns a number.

MLflow stores this file and runs it where the model is loaded (models-from-code), so nothing is pickled. The modules of
this repository that it imports are stored with it, so the model can be loaded without a checkout.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class ImageRegressor(PythonModel):
    """Predicts one number for each image."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads weights and processor, onto the accelerator if there is one."""
        from components.settings import Model
        from components.shared.model.device import device
        from components.shared.model.loading import load

        config, folder = context.model_config, context.artifacts["model"]
        loading = Model(
            name=folder,
            revision=None,
            dtype=config["dtype"],
            attention=config["attention"],
            compile=False,
            max_pixels=None,  # the stored processor already has this limit
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
        """Predicts one number for each image.

        Args:
            model_input: one row per image. `image`: the bytes of an encoded file (PNG, JPEG, ...); `question`: text; if
                it is missing or null, the task's question is used.

        Returns:
            `value`, one row per image: the number, or NaN if the answer has no number within the task's range.
        """
        import pyarrow as pa

        from components.shared.model.generation import generate_answers
        from components.shared.scoring.answers import parse_answers

        config = context.model_config
        texts = (
            model_input["question"] if "question" in model_input else pd.Series(None, model_input.index, dtype=object)
        )
        questions = [config["question"] if pd.isna(text) else str(text) for text in texts]
        images = [{"bytes": bytes(data)} for data in model_input["image"]]
        rows = pa.record_batch(
            {
                "id": pa.array([str(index) for index in range(len(images))]),
                "image": pa.array(images, pa.struct([("bytes", pa.binary())])),
                "question": pa.array(questions, pa.string()),
            }
        )
        answers: list[str] = []
        for _, batch in generate_answers(
            self._model, self._processor, [rows], config["batch_size"], config["max_new_tokens"]
        ):
            answers += batch
        return pd.DataFrame({"value": parse_answers(answers, config["low"], config["high"])})


set_model(ImageRegressor())

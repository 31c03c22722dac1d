"""The registered model: takes an image and a question, returns a number with its interval.

MLflow stores this file and runs it where the model is loaded (models-from-code), so nothing is pickled. The modules of
this repository that it imports are stored with it, so the model can be loaded without a checkout.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    import pyarrow as pa

    from components.settings import Reader
    from components.shared.model.number_reader import NumberReader
    from components.shared.scoring.errors import Array


COLUMNS = ("value", "low", "high", "mass")


class ImageRegressor(PythonModel):
    """Reads one number off each image.

    Attributes:
        settings: how numbers are read, as registered.
        reader: model, processor and answer rule.
    """

    settings: "Reader"
    reader: "NumberReader"

    def load_context(self, context: PythonModelContext) -> None:
        """Loads weights, processor and the distributions over the validation images; uses the accelerator, if any."""
        from components.settings import Reader
        from components.shared.model.number_reader import NumberReader

        self.settings = Reader.model_validate(context.model_config)
        self.reader = NumberReader.load(Path(context.artifacts["model"]), self.settings)
        self._lock = threading.Lock()  # reading changes the model's modules, and a server may have several threads

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Reads one number off each image.

        Args:
            model_input: one row per image. `image`: the bytes of an encoded file (PNG, JPEG, ...); `question`: text; if
                it is missing or null, the task's question is used.
            params: `balance` and `coverage`, in place of the model's own.

        Returns:
            One row per image, under the input's index. `value`: the number. `low`, `high`: ends of its interval.
            `mass`: the probability that the model gives to all numbers together. `error`: why the image could not be
            read, else null. Numbers that are unknown are NaN: all of an unreadable image; where the settings ask for
            the model's text, all but `value`, and `value` too if the text has no number within the task's range.

        Raises:
            MlflowException: none of the images can be read, a parameter is out of range, or a question contains a
                special token such as <image>; the server's status is 400.
        """
        from components.errors import ConcordError

        try:
            reader = self.reader.answering(**(params or {})) if self.reader.rule else self.reader
        except ConcordError as error:
            raise _bad_request(str(error)) from None
        found = pd.DataFrame(float("nan"), index=range(len(model_input)), columns=[*COLUMNS])
        unreadable: dict[str, str] = {}
        with self._lock:
            for ids, read in reader.read([self._rows(model_input)], self.settings.batch_size, unreadable):
                found.loc[[int(id) for id in ids]] = list(zip(read.value, read.low, read.high, read.mass, strict=True))
        if unreadable and len(unreadable) == len(model_input):
            raise _bad_request(f"no image can be read; the first: {unreadable['0']}")
        found["error"] = pd.Series({int(id): reason for id, reason in unreadable.items()}, found.index, dtype=object)
        return found.set_axis(model_input.index)

    def log_probabilities(self, image: bytes, question: str | None) -> "Array":
        """Log-probabilities `(1, N)` of the task's numbers.

        Args:
            image: an encoded file.
            question: None for the task's.

        Raises:
            MlflowException: the image cannot be read, or the question contains a special token.
        """
        rows, unreadable = self._rows(pd.DataFrame({"image": [image], "question": [question]})), dict[str, str]()
        with self._lock:
            found = [log_p for _, log_p in self.reader.log_probabilities([rows], 1, unreadable)]
        if unreadable:
            raise _bad_request(f"the image cannot be read: {unreadable['0']}")
        return found[0]

    def _rows(self, model_input: pd.DataFrame) -> "pa.RecordBatch":
        """The input as rows, with their positions as ids.

        Raises:
            MlflowException: a question contains a special token of the model.
        """
        import pyarrow as pa

        from components.shared.model.prompts import special_token

        count = len(model_input)
        texts = model_input["question"] if "question" in model_input else [None] * count
        questions = [self.settings.task.question if pd.isna(text) else str(text) for text in texts]
        for question in set(questions):
            if token := special_token(self.reader.processor, question):
                raise _bad_request(f"question: {token} is a special token of the model, not text; leave it out")
        images = [{"bytes": None if data is None else bytes(data)} for data in model_input["image"]]
        return pa.record_batch(
            {
                "id": pa.array([str(position) for position in range(count)], pa.string()),
                "image": pa.array(images, pa.struct([("bytes", pa.binary())])),
                "question": pa.array(questions, pa.string()),
            }
        )


def _bad_request(message: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ImageRegressor())

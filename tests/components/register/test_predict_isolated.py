"""How the isolated process asks a model that may refuse single images."""

from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, UNAUTHENTICATED

from components.register.predict_isolated import _answers, may_pass


class Strict:
    """A model of an earlier release: one image that it refuses fails the whole batch."""

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        if "bad" in inputs["image"].to_list():
            raise ValueError("image bad: does not decode")
        if "large" in inputs["image"].to_list():
            raise MemoryError("no memory left")
        return pd.DataFrame({"value": [float(image) for image in inputs["image"]]}, index=inputs.index)


def asked(*images: str, proven: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _answers(Strict(), pd.DataFrame({"image": images}), proven).to_dict("records")
    return found


def test_a_refused_image_costs_the_others_nothing() -> None:
    found = asked("1", "bad", "3")
    assert [row["value"] for row in found if row["value"] == row["value"]] == [1.0, 3.0]
    assert found[1]["error"] == "image bad: does not decode"


def test_a_model_that_refuses_everything_is_given_up() -> None:
    for images in (["bad"], ["bad"] * 3, ["bad"] * 20):
        with pytest.raises(ValueError, match="does not decode"):
            asked(*images)
    assert len(asked("bad", proven=True)) == 1


def test_short_memory_is_no_fault_of_an_image() -> None:
    with pytest.raises(MemoryError):
        asked("1", "bad", "large")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (ConnectionError("refused"), True),
        (OSError(28, "No space left on device"), True),
        (MlflowException("API request failed with exception"), True),
        (MlflowException("You are not authenticated", error_code=UNAUTHENTICATED), True),
        (MlflowException("Permission denied", error_code=PERMISSION_DENIED), True),
        (FileNotFoundError("model.safetensors"), False),
        (MlflowException("no such model", error_code=RESOURCE_DOES_NOT_EXIST), False),
        (ImportError("no module named x"), False),
        (KeyError("other library"), False),
    ],
)
def test_what_another_attempt_may_mend(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes

"""Reads Kubeflow's executor input and writes its executor output: artifacts with DVC hashes, and metrics."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import ConcordError
from components.shared.io.atomic import write_json
from components.shared.io.secrets import masked
from components.shared.tracking.flatten import flatten, split_curves
from components.steps import STEPS, Step, metrics_file

METRICS = "metrics"


@dataclass(frozen=True)
class ExpectedOutputs:
    """The outputs that Kubeflow's executor input lists.

    Attributes:
        file: path of the executor output file, which Kubeflow reads afterwards.
        artifacts: artifact name -> its full name and its URI.
    """

    file: Path
    artifacts: Mapping[str, tuple[str, str]]

    @classmethod
    def from_json(cls, executor_input: str) -> "ExpectedOutputs":
        """Parses the JSON that Kubeflow passes on the command line.

        Raises:
            ConcordError: the JSON is not Kubeflow's.
        """
        try:
            outputs = json.loads(executor_input)["outputs"]
            named = outputs.get("artifacts", {}).items()
            artifacts = {name: (a["artifacts"][0]["name"], a["artifacts"][0]["uri"]) for name, a in named}
            return cls(Path(outputs["outputFile"]), artifacts)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConcordError(
                f"--executor-input: not Kubeflow's executor input ({error!r}). Only Kubeflow sets this flag."
            ) from None


def missing_input(step: Step, port: str, path: Path, executor_input: str) -> ConcordError:
    """Returns the error for an input that is missing in the container.

    Kubeflow's launcher fetches the outputs of earlier steps and does not report a prefix without objects. The raw input
    is not an artifact: `ingest` fetches it, unless its address is a folder.
    """
    if port not in STEPS:
        return ConcordError(
            f"{path}: this container has no such folder, and {step.name} reads it. Set the pipeline's data_uri to "
            "the s3://bucket/prefix of the raw input."
        )
    try:
        address = json.loads(executor_input)["inputs"]["artifacts"][port]["artifacts"][0]["uri"]
    except (ValueError, KeyError, IndexError, TypeError):
        address = "the address of its artifact"
    return ConcordError(
        f"{path}: missing, and {step.name} reads it. Kubeflow found no object at {masked(str(address))}, where the "
        f"output of {port} should be: it was deleted, or Kubeflow's credentials (config map kfp-launcher) do not give "
        "access to that bucket. Fix that, or submit the pipeline with --cache off, which computes all outputs again."
    )


def write_executor_output(
    expected: ExpectedOutputs, outputs: Mapping[str, Path], metadata: Mapping[str, Mapping[str, object]]
) -> None:
    """Writes Kubeflow's executor output file without kfp, which the image does not contain.

    Args:
        expected: path of the file, and the artifacts' names.
        outputs: port name -> path. The metrics.json in `out` becomes the metadata of the artifact `metrics`.
        metadata: port name -> metadata of its artifact, strings and numbers.
    """
    figures, _ = split_curves(json.loads(metrics_file(outputs["out"]).read_text(encoding="utf-8")))
    numbers = {k: v for k, v in flatten(figures).items() if isinstance(v, int | float) and math.isfinite(v)}
    metadata = {**metadata, METRICS: numbers}
    artifacts = {
        name: {"artifacts": [{"name": full, "uri": uri, "metadata": metadata.get(name, {})}]}
        for name, (full, uri) in expected.artifacts.items()
    }
    write_json(expected.file, {"artifacts": artifacts})

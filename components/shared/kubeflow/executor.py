"""What Kubeflow is told of a finished step: its artifacts with their DVC hashes, and its metrics as numbers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import ConcordError
from components.shared.io.atomic import write_json
from components.shared.io.secrets import masked
from components.shared.tracking.step_run import flat
from components.steps import STEPS, Step, metrics_file

METRICS = "metrics"


@dataclass(frozen=True)
class ExpectedOutputs:
    """What Kubeflow's executor input says of the outputs.

    Attributes:
        file: where it reads about them.
        artifacts: artifact name -> its full name and its URI.
    """

    file: Path
    artifacts: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, executor_input: str) -> "ExpectedOutputs":
        """Reads the JSON that Kubeflow puts on the command line.

        Raises:
            ConcordError: the JSON is not Kubeflow's.
        """
        try:
            wanted = json.loads(executor_input)["outputs"]
            named = wanted.get("artifacts", {}).items()
            artifacts = {name: (a["artifacts"][0]["name"], a["artifacts"][0]["uri"]) for name, a in named}
            return cls(Path(wanted["outputFile"]), artifacts)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConcordError(
                f"--executor-input: not Kubeflow's executor input ({error!r}); leave it to Kubeflow."
            ) from None


def missing_input(step: Step, port: str, path: Path, executor_input: str) -> ConcordError:
    """The error for an input that is not in the container.

    Kubeflow's launcher fetches the outputs of earlier steps; a prefix without objects is no error to it. The raw input
    is no artifact: `ingest` fetches it, unless its address is a folder.
    """
    if port not in STEPS:
        return ConcordError(
            f"{path}: this container has no such folder, and {step.name} reads it. Set the pipeline's data_uri to "
            "s3://bucket/prefix, where the raw input lies."
        )
    try:
        address = json.loads(executor_input)["inputs"]["artifacts"][port]["artifacts"][0]["uri"]
    except (ValueError, KeyError, IndexError, TypeError):
        address = "the address of its artifact"
    return ConcordError(
        f"{path}: missing, and {step.name} reads it. Kubeflow found no object at {masked(str(address))}, where the "
        f"output of {port} should be: it was deleted, or Kubeflow's key (config map kfp-launcher) does not reach that "
        "bucket. Mend that, or submit the pipeline with --cache off, which makes all outputs again."
    )


def write_executor_output(
    expected: ExpectedOutputs, outputs: Mapping[str, Path], known: Mapping[str, Mapping[str, object]]
) -> None:
    """Writes Kubeflow's executor output file; the image needs no kfp for it.

    Args:
        expected: where to write it, and the artifacts' names.
        outputs: port name -> path. The metrics.json in `out` becomes the metadata of the artifact `metrics`.
        known: port name -> metadata of its artifact, texts and numbers.
    """
    figures = flat(json.loads(metrics_file(outputs["out"]).read_text(encoding="utf-8")))
    metadata = {**known, METRICS: {k: v for k, v in figures.items() if isinstance(v, int | float) and math.isfinite(v)}}
    artifacts = {
        name: {"artifacts": [{"name": full, "uri": uri, "metadata": metadata.get(name, {})}]}
        for name, (full, uri) in expected.artifacts.items()
    }
    write_json(expected.file, {"artifacts": artifacts})

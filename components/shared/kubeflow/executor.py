"""What Kubeflow is told of a finished step: its artifacts with their DVC hashes, and its metrics as numbers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from components.shared.data.atomic import write_json
from components.shared.errors import ConcordError
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.runs import flat
from components.steps import metrics_file

METRICS = "metrics"


def write_executor_output(executor_input: str, outputs: Mapping[str, Path]) -> None:
    """Writes Kubeflow's executor output file; the image needs no kfp for it.

    Args:
        executor_input: Kubeflow's JSON; it names the output artifacts, their URIs and the file to write.
        outputs: port name -> path. The metrics.json in `out` becomes the metadata of the artifact `metrics`.

    Raises:
        ConcordError: the JSON is not Kubeflow's.
    """
    try:
        wanted = json.loads(executor_input)["outputs"]
        file = Path(wanted["outputFile"])
        named = {name: (a["artifacts"][0]["name"], a["artifacts"][0]["uri"]) for name, a in wanted["artifacts"].items()}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConcordError(
            f"--executor-input: not Kubeflow's executor input ({error!r}); leave it to Kubeflow."
        ) from None
    figures = flat(json.loads(metrics_file(outputs["out"]).read_text(encoding="utf-8")))
    known: dict[str, dict[str, object]] = {port: {"dvc_hash": dvc_hash(path)} for port, path in outputs.items()}
    known[METRICS] = {k: v for k, v in figures.items() if isinstance(v, int | float) and math.isfinite(v)}
    artifacts = {
        name: {"artifacts": [{"name": full, "uri": uri, "metadata": known.get(name, {})}]}
        for name, (full, uri) in named.items()
    }
    write_json(file, {"artifacts": artifacts})

"""Packages a model for MLflow: weights, processor, the code it needs, pinned requirements and a signature."""

import ast
import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from components.settings import Answer, Reader
from components.shared.tracking.connection import mlflow_errors, quiet, tracking_uri
from components.shared.tracking.step_run import StepRun

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ROOT = Path(__file__).parents[2]
SERVED_MODEL = Path(__file__).with_name("served_model.py")

# Imports of the served code. MLflow's own inference runs the model and lists far more packages.
REQUIREMENTS = (
    "accelerate", "jinja2", "mlflow", "numpy", "pandas", "peft", "pillow", "pyarrow", "pydantic", "pyyaml",
    "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip


def log_model(track: StepRun, weights: Path, reader: Reader) -> str:
    """Stores the model with the step's run.

    Args:
        track: the step's MLflow run.
        weights: a model folder.
        reader: how it reads.

    Returns:
        MLflow's model id, `m-...`.

    Raises:
        ConcordError: the store cannot be reached.
    """
    quiet()
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri())
    # Otherwise the model is stored in another experiment than its run.
    mlflow.set_experiment(experiment_id=track.experiment_id)
    with tempfile.TemporaryDirectory() as folder, mlflow_errors("store the model"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*input example")  # the signature is explicit, and the step verifies it
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=track.run_id,
            python_model=str(SERVED_MODEL),
            artifacts={"model": str(weights)},
            code_paths=[str(served_code(Path(folder)))],
            model_config=reader.tree(),
            signature=signature(reader.answer),
            pip_requirements=pinned_requirements(),
        )
    return str(info.model_id)


def signature(answer: Answer) -> "ModelSignature":
    """Returns the signature: image bytes and an optional question as input; a number, its interval, mass as output.

    Where answers come from the distribution, `balance` and `coverage` are parameters.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    known = {"balance": answer.balance, "coverage": answer.coverage} if answer.source == "distribution" else {}
    params = [ParamSpec(name, DataType.double, value) for name, value in known.items()]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "question", required=False)]),
        outputs=Schema(
            [
                *(ColSpec(DataType.double, name) for name in ("value", "low", "high", "mass")),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema(params) if params else None,
    )


def pinned_requirements() -> list[str]:
    """Returns REQUIREMENTS at the installed versions, without local suffixes such as `+cpu`, which no index has."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def served_code(folder: Path) -> Path:
    """Copies only the modules of this repository that the served model imports; returns the copied package."""
    for file in [ROOT / "components" / "__init__.py", *_imported_files(SERVED_MODEL)]:
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / "components"


def _imported_files(file: Path) -> Iterator[Path]:
    """Yields the files of this repository that a file imports, recursively, including imports inside functions."""
    pending, seen = [file], {file}
    while pending:
        for node in ast.walk(ast.parse(pending.pop().read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                path = ROOT.joinpath(*module.split("."))
                for source in (path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"):
                    if module.startswith("components.") and source.is_file() and source not in seen:
                        seen.add(source)
                        pending.append(source)
                        yield source

"""A model as MLflow keeps it: weights, processor, the code it needs, pinned requirements, an explicit signature."""

import ast
import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.settings import Settings
from components.shared.tracking.connection import mlflow_errors, quiet, tracking_uri
from components.shared.tracking.step_run import StepRun

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ROOT = Path(__file__).parents[2]
SERVED = Path(__file__).with_name("served_model.py")

# What the served code imports. Explicit: MLflow would find them by running the model, and would take in far more.
REQUIREMENTS = (
    "accelerate", "jinja2", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors",
    "tokenizers", "torch", "transformers",
)  # fmt: skip


def served_settings(settings: Settings) -> dict[str, Any]:
    """What the served model keeps of params.yaml; MLflow lets whoever loads it override them (`model_config`)."""
    return {
        "question": settings.task.question,
        "low": settings.task.low,
        "high": settings.task.high,
        "dtype": settings.model.dtype,
        "attention": settings.model.attention,
        "batch_size": settings.evaluate.batch_size,
        "max_new_tokens": settings.evaluate.max_new_tokens,
    }


def log_model(track: StepRun, weights: Path, settings: Settings) -> str:
    """Stores the model with the step's run.

    Args:
        track: the step's MLflow run.
        weights: a model folder.

    Returns:
        MLflow's id of it, `m-...`.

    Raises:
        ConcordError: the store is away.
    """
    quiet()
    import mlflow
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_experiment(experiment_id=track.experiment_id)  # else the model goes to another than its run
    with tempfile.TemporaryDirectory() as folder, mlflow_errors("store the model"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*input example")  # the signature is given, and checked by the step
        info = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=track.run_id,
            python_model=str(SERVED),
            artifacts={"model": str(weights)},
            code_paths=[str(served_code(Path(folder)))],
            model_config=served_settings(settings),
            signature=signature(),
            pip_requirements=pinned_requirements(),
        )
    return str(info.model_id)


def signature() -> "ModelSignature":
    """Image bytes and an optional question in, a number (or NaN) out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "question", required=False)]),
        outputs=Schema([ColSpec(DataType.double, "value")]),
    )


def pinned_requirements() -> list[str]:
    """REQUIREMENTS at the versions that are installed, without local builds (`+cpu`), which no index has."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def served_code(folder: Path) -> Path:
    """Copies the modules of ours that the served model imports, and no others, below `folder`; returns the package."""
    for file in [ROOT / "components" / "__init__.py", *_imported(SERVED)]:
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / "components"


def _imported(file: Path) -> Iterator[Path]:
    """Our modules that a file imports, at any depth and anywhere in the code, with the packages that hold them."""
    waiting, seen = [file], {file}
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                path = ROOT.joinpath(*module.split("."))
                for found in (path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"):
                    if module.startswith("components.") and found.is_file() and found not in seen:
                        seen.add(found)
                        waiting.append(found)
                        yield found

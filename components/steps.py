"""The step table: inputs, outputs, settings and code of each step.

Tests compare dvc.yaml, the Kubeflow pipeline and the command line with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: also the folder of its code and, in params.yaml, its section.
        title: shown in graphs.
        inputs: port name -> default path. The name is that of the step that writes it (`data`: the raw input).
        outputs: port name -> default path. `out` is the step's own folder and holds its metrics.json.
        sections: the sections of params.yaml that decide the outputs.
        packages: the packages of components/shared whose code decides the outputs.
        unread: inputs that must exist, and whose content changes nothing in the outputs.
        resumes: whether it keeps training state in .checkpoints and resumes from it after a kill.
        parallel: whether it can run on many ranks; the section `launcher` sets their number.
        loads_base: whether it loads the model of `model.name`, whose content must then be that of `model.revision`.
        asks_registry: whether its result depends on the current champion, which is not among its inputs. register
            compares the model with it; validate compares the data with its training data. A pipeline always runs such a
            step and never takes its outputs from a cache.
    """

    name: str
    title: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    sections: tuple[str, ...]
    packages: tuple[str, ...]
    unread: tuple[str, ...] = ()
    resumes: bool = False
    parallel: bool = False
    loads_base: bool = False
    asks_registry: bool = False

    @property
    def code(self) -> tuple[str, ...]:
        """The folders of code that decide the outputs, relative to the repository."""
        return (f"components/{self.name}", *(f"components/shared/{package}" for package in self.packages))

    def command(self, params: str = "params.yaml", paths: Mapping[str, str] | None = None) -> list[str]:
        """The command line that DVC, Kubeflow and people call, with default paths or others.

        Args:
            paths: port name -> path; the default path for ports that are not named.
        """
        words = ["python", "-m", "components", self.name, "--params", params]
        for port, default in {**self.inputs, **self.outputs}.items():
            words += [f"--{port}", (paths or {}).get(port, default)]
        return words


def _out(name: str) -> dict[str, str]:
    return {"out": f"artifacts/{name}"}


_ROWS = {"ingest": "artifacts/ingest"}

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("ingest", "Ingest and split", {"data": "data"}, _out("ingest"), ("task", "ingest"), ("rows", "scoring")),
        Step(
            "validate",
            "Validate splits",
            _ROWS,
            _out("validate"),
            ("task", "validate", "register"),
            ("reporting", "rows", "scoring"),
            asks_registry=True,
        ),
        Step(
            "sft",
            "SFT warm start",
            {**_ROWS, "validate": "artifacts/validate"},
            _out("sft"),
            ("task", "model", "sft"),
            ("model", "rows", "scoring", "training"),
            unread=("validate",),
            resumes=True,
            parallel=True,
            loads_base=True,
        ),
        Step(
            "grpo",
            "CCC-GRPO",
            {**_ROWS, "sft": "artifacts/sft"},
            _out("grpo"),
            ("task", "model", "grpo"),
            ("model", "rows", "scoring", "training"),
            resumes=True,
            parallel=True,
        ),
        Step(
            "evaluate",
            "Shot-aware evaluation",
            {**_ROWS, "sft": "artifacts/sft", "grpo": "artifacts/grpo"},
            {**_out("evaluate"), "report": "reports/evaluate"},
            ("task", "model", "sft", "answer", "evaluate", "register"),
            ("model", "reporting", "rows", "scoring"),
            loads_base=True,
        ),
        Step(
            "register",
            "Register model",
            {**_ROWS, "sft": "artifacts/sft", "grpo": "artifacts/grpo", "evaluate": "artifacts/evaluate"},
            _out("register"),
            ("task", "model", "answer", "evaluate", "register"),
            ("model", "reporting", "rows", "scoring"),
            asks_registry=True,
        ),
    )
}


def metrics_file(out: Path) -> Path:
    """The file of a step's scalar metrics."""
    return out / "metrics.json"

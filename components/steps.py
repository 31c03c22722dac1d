"""The step table: each step's inputs, outputs, settings and where it stands in the chain. DVC, Kubeflow and the command
line are all held against it by a test."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: also the folder of its code and, in params.yaml, its section.
        title: what a person reads on the graph.
        inputs: port name -> default path. The name is that of the step that makes it (`data`: the raw input).
        outputs: port name -> default path. `out` is the step's own folder and holds its metrics.json.
        sections: the sections of params.yaml that decide the outputs.
        packages: the packages of components/shared whose code decides the outputs.
        resumes: whether it keeps training state in .checkpoints and goes on from there after a kill.
        parallel: whether it runs on many ranks as well; the section `launcher` says on how many.
        asks_registry: whether what it says or does depends on today's champion, which is none of its inputs: register
            judges a model against it, validate holds the data against those that it was trained on. To fetch what an
            earlier run wrote would do neither, so a pipeline always runs the step.
    """

    name: str
    title: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    sections: tuple[str, ...]
    packages: tuple[str, ...]
    resumes: bool = False
    parallel: bool = False
    asks_registry: bool = False

    @property
    def code(self) -> tuple[str, ...]:
        """The folders of code that decide the outputs, relative to the repository."""
        return (f"components/{self.name}", *(f"components/shared/{package}" for package in self.packages))

    def command(self, params: str = "params.yaml", paths: Mapping[str, str] | None = None) -> list[str]:
        """The one command line that DVC, Kubeflow and a person call, with the ports' default paths or others."""
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
            ("task", "validate"),
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
            resumes=True,
            parallel=True,
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
            ("task", "model", "sft", "evaluate"),
            ("model", "reporting", "rows", "scoring"),
        ),
        Step(
            "register",
            "Register model",
            {**_ROWS, "grpo": "artifacts/grpo", "evaluate": "artifacts/evaluate"},
            _out("register"),
            ("task", "model", "evaluate", "register"),
            ("model", "reporting", "rows", "scoring"),
            asks_registry=True,
        ),
    )
}


def metrics_file(out: Path) -> Path:
    """Where a step's scalar metrics are."""
    return out / "metrics.json"

"""dvc.yaml and the command line agree with the step table; pipelines/test_training.py compares the pipeline."""

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.stage import PipelineStage

from components.__main__ import parser
from components.steps import STEPS, Step

ROOT = Path(__file__).parents[1]
EACH = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)

# Code that cannot change a result (see the head of dvc.yaml); the files of components/ itself do not count either.
NOT_DEPENDED_ON = ("components/shared/io/", "components/shared/tracking/", "components/shared/model/quiet.py")
# Code that a step starts or packs by its path.
BY_PATH = {"components/register/predict_isolated.py", "components/register/served_model.py"}


@pytest.fixture(scope="module")
def stages() -> dict[str, PipelineStage]:
    """The stages as DVC itself reads them from dvc.yaml and params.yaml."""
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages if isinstance(stage, PipelineStage)}


def test_every_input_is_the_output_of_an_earlier_step() -> None:
    made = {"data": {"data"}}
    for step in STEPS.values():
        for port, path in step.inputs.items():
            assert path in made[port], f"{step.name}: {port} is {path}"
        assert "out" in step.outputs
        assert not set(step.inputs) & set(step.outputs)
        made[step.name] = set(step.outputs.values())


def test_dvc_has_the_steps_in_order(stages: dict[str, PipelineStage]) -> None:
    assert list(stages) == list(STEPS)


@EACH
def test_dvc_stage_agrees_with_the_step(step: Step, stages: dict[str, PipelineStage]) -> None:
    stage = stages[step.name]
    assert shlex.split(stage.cmd) == ["exec", *step.command()]
    assert stage.desc == step.title
    assert [out.def_path for out in stage.outs] == list(step.outputs.values())
    # Otherwise DVC would remove the output before the step has checked its input.
    assert all(out.persist for out in stage.outs)
    params = [dep for dep in stage.deps if hasattr(dep, "params")]
    assert [(dep.def_path, dep.params) for dep in params] == [("params.yaml", list(step.sections))]
    inputs = [dep.def_path for dep in stage.deps if dep not in params and not dep.def_path.startswith("components/")]
    assert inputs == list(step.inputs.values())


@EACH
def test_dvc_stage_depends_on_the_packages_that_the_step_imports(step: Step, stages: dict[str, PipelineStage]) -> None:
    named = [dep.def_path for dep in stages[step.name].deps if dep.def_path.startswith("components/")]
    assert tuple(named) == step.code
    own = f"components/{step.name}"
    starts = [f"{own}/step.py", *(path for path in BY_PATH if path.startswith(f"{own}/"))]
    imported = {path.rpartition("/")[0] for start in starts for path in reached(ROOT / start)}
    assert {folder for folder in imported if folder != own and not folder.startswith(f"{own}/")} == set(named[1:])


def test_dvc_yaml_has_at_most_30_dependencies_on_code(stages: dict[str, PipelineStage]) -> None:
    assert sum(dep.def_path.startswith("components/") for stage in stages.values() for dep in stage.deps) <= 30


@EACH
def test_dvcignore_hides_no_code_that_a_step_imports(step: Step) -> None:
    """A change in a hidden file would not run the step again; one in a file that is not needed would, in vain."""
    folder = f"components/{step.name}"
    needed = {path for path in reached(ROOT / folder / "step.py") if path.startswith(f"{folder}/")} | BY_PATH
    needed |= {f"{folder}/__init__.py", f"{folder}/step.py"}
    with Repo(str(ROOT)) as repo:
        for file in (ROOT / folder).glob("*.py"):
            path = file.relative_to(ROOT).as_posix()
            assert repo.dvcignore.is_ignored_file(str(file)) == (path not in needed), f".dvcignore: {path}"


def test_steps_do_not_import_each_other() -> None:
    for name in STEPS:
        others = tuple(f"components/{other}/" for other in STEPS if other != name)
        for path in reached(ROOT / "components" / name / "step.py"):
            assert not path.startswith(others), f"{name} imports {path}"


@EACH
def test_command_line_has_a_flag_for_each_port_with_its_default(step: Step) -> None:
    words = step.command()[3:]
    given, bare = vars(parser().parse_args(words)), vars(parser().parse_args(words[:1]))
    for port, path in {**step.inputs, **step.outputs}.items():
        # --data may be an address of S3, and without it the settings say where the raw input is.
        assert given[port] == (path if port == "data" else Path(path))
        assert bare[port] == (None if port == "data" else Path(path))


def test_command_uses_the_given_paths() -> None:
    assert STEPS["grpo"].command("p.yaml", {"sft": "/in/1", "out": "/out/1"}) == [
        "python", "-m", "components", "grpo", "--params", "p.yaml",
        "--ingest", "artifacts/ingest", "--sft", "/in/1", "--out", "/out/1",
    ]  # fmt: skip


def reached(file: Path) -> set[str]:
    """Our modules that `file` imports, directly or indirectly, as paths relative to the root.

    Modules that stages do not depend on are left out, and so are their own imports.
    """
    found: set[str] = set()
    waiting = [file]
    while waiting:
        for module in imported_modules(waiting.pop()):
            path = ROOT / f"{module.replace('.', '/')}.py"
            relative = path.relative_to(ROOT).as_posix()
            counts = relative.count("/") > 1 and not relative.startswith(NOT_DEPENDED_ON)
            if path.exists() and relative not in found and counts:
                found.add(relative)
                waiting.append(path)
    return found


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)

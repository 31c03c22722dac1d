"""The compiled Kubeflow pipeline agrees with the step table, and its command lines can be parsed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.local import placeholder_utils
from kfp.pipeline_spec import pipeline_spec_pb2

from components.__main__ import parser
from components.settings import WITHOUT_EFFECT, load_settings
from components.shared.tracking.lineage import code_fingerprint, code_identity
from components.steps import STEPS, Step
from pipelines.__main__ import main

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
IMAGE = "registry.example/concord:7"
HASH = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("pipeline") / "training.yaml"
    params = str(ROOT / "params.yaml")
    assert main(["compile", "--params", params, "--image", IMAGE, "--data-hash", HASH, "--out", str(out)]) == 0
    spec = next(yaml.safe_load_all(out.read_text(encoding="utf-8")))
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())  # validates the spec as a server does
    return spec


def task(compiled: dict[str, Any], name: str) -> dict[str, Any]:
    return compiled["root"]["dag"]["tasks"][name]


def command_line(compiled: dict[str, Any], name: str) -> list[str]:
    container = compiled["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return container["command"] + container["args"]


def test_tasks_are_the_steps_and_the_importer(compiled: dict[str, Any]) -> None:
    assert set(compiled["root"]["dag"]["tasks"]) == {"importer", *STEPS}


@EACH
def test_component_has_the_ports_and_sections_of_the_step(step: Step, compiled: dict[str, Any]) -> None:
    component = compiled["components"][f"comp-{step.name}"]
    inputs = component["inputDefinitions"]
    assert set(inputs.get("artifacts", {})) == set(step.inputs) - {"data"}
    page = {"page"} if "report" in step.outputs else set()
    assert set(component["outputDefinitions"]["artifacts"]) == {*step.outputs, "metrics", *page}
    types = component["outputDefinitions"]["artifacts"]
    assert types["metrics"]["artifactType"]["schemaTitle"] == "system.Metrics"
    assert all(types[name]["artifactType"]["schemaTitle"] == "system.HTML" for name in page)
    is_model = types["out"]["artifactType"]["schemaTitle"] == "system.Model"
    assert is_model == (step.name in ("sft", "grpo"))
    sections = {f"{section}_settings" for section in step.sections}
    data = {"data_uri", "data_hash"} if "data" in step.inputs else set()
    assert set(inputs["parameters"]) == {"code", "experiment", *sections, *data}
    executor = compiled["deploymentSpec"]["executors"][f"exec-{step.name}"]
    assert executor["container"]["image"] == IMAGE


@EACH
def test_command_line_is_the_step_s(step: Step, compiled: dict[str, Any]) -> None:
    paths = {port: f"{{{{$.inputs.artifacts['{port}'].path}}}}" for port in step.inputs}
    paths |= {"data": "{{$.inputs.parameters['data_uri']}}"} if "data" in step.inputs else {}
    paths |= {port: f"{{{{$.outputs.artifacts['{port}'].path}}}}" for port in step.outputs}
    command = step.command(paths=paths)
    args = command_line(compiled, step.name)
    assert args[: len(command)] == command
    extra = ["--code", "{{$.inputs.parameters['code']}}", "--experiment", "{{$.inputs.parameters['experiment']}}"]
    for section in step.sections:
        extra += ["--section", section, f"{{{{$.inputs.parameters['{section}_settings']}}}}"]
    if "data" in step.inputs:
        extra += ["--data-hash", "{{$.inputs.parameters['data_hash']}}"]
    if "report" in step.outputs:
        extra += ["--page", "{{$.outputs.artifacts['page'].path}}"]
    if step.resumes:
        extra += ["--state", "/checkpoints"]
    assert args[len(command) :] == [*extra, "--executor-input", "{{$}}"]


@EACH
def test_task_has_the_title_and_reads_outputs_of_the_right_steps(step: Step, compiled: dict[str, Any]) -> None:
    spec = task(compiled, step.name)
    assert spec["taskInfo"]["name"] == step.title
    sources = {port: next(iter(value.values())) for port, value in spec["inputs"].get("artifacts", {}).items()}
    for port, source in sources.items():
        assert (source["producerTask"], source["outputArtifactKey"]) == (port, "out")
    assert set(spec.get("dependentTasks", ())) == {source["producerTask"] for source in sources.values()}
    parameters = dict(spec["inputs"]["parameters"])
    mark = code_fingerprint(code_identity(step))
    assert re.fullmatch(r"[0-9a-f]{16}", mark)
    assert parameters.pop("code") == {"runtimeValue": {"constant": mark}}  # Kubeflow's cache does not look into images
    for name, value in parameters.items():
        assert value == {"componentInputParameter": name}  # the pipeline's input of the same name


def test_pipeline_inputs_default_to_params_yaml(compiled: dict[str, Any]) -> None:
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = raw.keys() - {"experiment", *WITHOUT_EFFECT}  # another number of GPUs must not train again
    assert set(inputs) == {"data_uri", "data_hash", "experiment", *(f"{section}_settings" for section in sections)}
    assert inputs["experiment"]["defaultValue"] == raw["experiment"]
    assert inputs["data_hash"]["defaultValue"] == HASH
    assert "defaultValue" not in inputs["data_uri"]
    for section in sections:
        assert json.loads(inputs[f"{section}_settings"]["defaultValue"]) == raw[section]


def test_only_grpo_reads_the_grpo_settings(compiled: dict[str, Any]) -> None:
    readers = [name for name in STEPS if "grpo_settings" in task(compiled, name)["inputs"]["parameters"]]
    assert readers == ["grpo"]


def test_importer_records_address_and_hash_and_no_step_reads_it(compiled: dict[str, Any]) -> None:
    """Kubeflow's driver looks up an importer by its task's key; ML Metadata stores it under the name in taskInfo."""
    importer = compiled["deploymentSpec"]["executors"]["exec-importer"]["importer"]
    # The metadata must not be a placeholder, which a server would store without replacing it.
    assert importer["metadata"] == {"dvc_hash": HASH}
    spec = task(compiled, "importer")
    assert spec["taskInfo"]["name"] == "importer"
    assert spec["inputs"]["parameters"]["uri"] == {"componentInputParameter": "data_uri"}
    assert "artifacts" not in task(compiled, "ingest")["inputs"]
    assert task(compiled, "ingest")["inputs"]["parameters"]["data_uri"] == {"componentInputParameter": "data_uri"}
    assert not any("importer" in each.get("dependentTasks", ()) for each in compiled["root"]["dag"]["tasks"].values())


@EACH
def test_filled_command_line_gives_the_experiment_s_settings(step: Step, compiled: dict[str, Any]) -> None:
    """Kubeflow's local resolver fills in the defaults; our command line must parse them to the same settings."""
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    executor_input = {
        "inputs": {
            "parameterValues": {name: value.get("defaultValue", "s3://raw/1") for name, value in inputs.items()},
            "artifacts": {
                port: {"artifacts": [{"name": port, "uri": f"/in/{port}"}]} for port in step.inputs if port != "data"
            },
        },
        "outputs": {
            "artifacts": {
                port: {"artifacts": [{"name": port, "uri": f"/out/{port}"}]} for port in (*step.outputs, "page")
            },
            "outputFile": "/out/executor_output.json",
        },
    }
    filled = placeholder_utils.replace_placeholders(
        command_line(compiled, step.name), executor_input, "training", step.name, "/root", "run"
    )
    args = parser().parse_args(filled[3:])
    for port in step.inputs:
        assert vars(args)[port] == ("s3://raw/1" if port == "data" else Path(f"/in/{port}"))
    for port in step.outputs:
        assert vars(args)[port] == Path(f"/out/{port}")
    assert json.loads(args.executor_input) == executor_input
    sections = dict(args.section) | {"experiment": json.dumps(args.experiment)}
    assert set(sections) == {"experiment", *step.sections}
    params = ROOT / "params.yaml"
    assert load_settings(params, sections) == load_settings(params)


def test_same_settings_give_same_bytes(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        command = ["compile", "--params", str(ROOT / "params.yaml"), "--data-hash", HASH, "--out", str(tmp_path / name)]
        assert main(command) == 0
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def test_wrong_params_are_reported_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params.write_text(text.replace("generations:", "generation:"), encoding="utf-8")
    assert main(["compile", "--params", str(params), "--out", str(tmp_path / "p.yaml")]) == 1
    stderr = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "grpo.generation: unknown key, did you mean generations?" in stderr
    assert not (tmp_path / "p.yaml").exists()

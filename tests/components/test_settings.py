"""params.yaml: what is in it, and what every kind of mistake in it is told as."""

import copy
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from components.settings import UNDECISIVE, Settings, load_settings
from components.shared.errors import ConcordError
from components.steps import STEPS

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
VLLM = {"mode": "colocate", "memory": 0.3, "host": "127.0.0.1", "port": 8000}
RELEASE = {"subset": "agedb", "train": "train.jsonl", "val": "val.json", "test": "test.json", "hub": None}
HUB = {"id": "owner/release", "revision": "0" * 40}
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "value": None, "effect": "NoSchedule"}
SECRET = {"name": "concord-hub", "optional": True, "env": {"HF_TOKEN": "token"}}
LORA = {"r": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}


def keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of the settings, sections' keys included, with its annotation. Of sections side by side that are alike
    (a pod for each step) the keys of the first are given; those of lists' items are tested by themselves."""
    seen: set[type[BaseModel]] = set()
    for name, field in model.model_fields.items():
        path = (*prefix, field.alias or name)
        yield path, field.annotation
        parts = () if typing.get_origin(field.annotation) is list else typing.get_args(field.annotation)
        for part in (field.annotation, *parts):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
                seen.add(part)
                yield from keys(part, path)


KEYS = dict(keys(Settings))
EACH = pytest.mark.parametrize("path", KEYS, ids=".".join)


def full() -> dict[str, Any]:
    """params.yaml with the optional sections filled in."""
    raw = copy.deepcopy(RAW)
    raw["ingest"] |= {"source": "release", "release": RELEASE | {"hub": dict(HUB)}}
    raw["model"]["lora"] = dict(LORA)
    raw["grpo"]["recent"] = {"inputs": 256, "steps": 32}
    raw["grpo"]["vllm"] = dict(VLLM)
    for pod in raw["cluster"]["steps"].values():
        pod |= {"accelerator": {"type": "nvidia.com/gpu", "count": 1}, "node_selector": {"pool": "gpu"}}
        pod["tolerations"] = [dict(TAINT)]
    return raw


def section(raw: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The mapping that holds the key at `path`."""
    for part in path[:-1]:
        raw = raw[part]
    return raw


@pytest.fixture
def told(tmp_path: Path) -> Callable[[Any], str]:
    """Loads settings that have a fault, and gives the message."""

    def load(content: Any) -> str:
        file = tmp_path / "params.yaml"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(ConcordError) as error:
            load_settings(file)
        return str(error.value).replace(str(file), "params.yaml")

    return load


def test_the_repository_s_experiment_loads_and_says_what_the_file_says(tmp_path: Path) -> None:
    settings = load_settings(ROOT / "params.yaml")
    assert settings.model_dump(mode="json", by_alias=True) == RAW
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(full()), encoding="utf-8")
    assert load_settings(file).model_dump(mode="json", by_alias=True) == full()


def test_every_section_of_a_step_is_there() -> None:
    for step in STEPS.values():
        assert set(step.sections) <= RAW.keys()
    assert {name for step in STEPS.values() for name in step.sections} == RAW.keys() - {"experiment", *UNDECISIVE}


@EACH
def test_a_missing_key_is_named(path: tuple[str, ...], told: Callable[[Any], str]) -> None:
    raw = full()
    del section(raw, path)[path[-1]]
    assert f"params.yaml: {'.'.join(path)}: missing; every setting is written out, add it" in told(raw).splitlines()


@EACH
def test_a_mistyped_key_is_named_with_the_right_one(path: tuple[str, ...], told: Callable[[Any], str]) -> None:
    raw = full()
    holder = section(raw, path)
    wrong = f"{path[-1]}x"
    holder[wrong] = holder.pop(path[-1])
    expected = f"params.yaml: {'.'.join((*path[:-1], wrong))}: unknown key, did you mean {path[-1]}?"
    assert expected in told(raw).splitlines()


def is_of(value: Any, annotation: Any) -> bool:
    """Whether the value has the type that the annotation names (a whole number has a float's)."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    parts = typing.get_args(annotation) if union else (annotation,)
    for part in parts:
        kind = typing.get_origin(part) or part
        if kind is typing.Literal or (kind is typing.Annotated and is_of(value, typing.get_args(part)[0])):
            return isinstance(value, str) if kind is typing.Literal else True
        if kind is float and type(value) is int:
            return True
        if isinstance(kind, type) and (type(value) is kind or (issubclass(kind, BaseModel) and type(value) is dict)):
            return True
    return False


@EACH
def test_a_wrong_type_is_named_with_its_value(path: tuple[str, ...], told: Callable[[Any], str]) -> None:
    key, wrong = ".".join(path), [v for v in ("red", True, [1], {"a": 1}, None, 1.5, 3) if not is_of(v, KEYS[path])]
    assert len(wrong) >= 3
    for value in wrong:
        raw = full()
        section(raw, path)[path[-1]] = value
        lines = [line for line in told(raw).splitlines() if line.startswith(f"params.yaml: {key}")]
        assert any(repr(value) in line for line in lines), f"{key} with {value!r} is told as {lines}"


@pytest.mark.parametrize("text", ["'0.5'", '"3"', '"1e-4"'])
def test_a_number_in_quotes_is_told_as_that(text: str, told: Callable[[Any], str]) -> None:
    content = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(r"(\n  beta: )\S+", rf"\g<1>{text}", content)
    assert changed != content
    assert "params.yaml: grpo.beta: " in told(changed)
    assert "is text; write the number without quotes" in told(changed)


@pytest.mark.parametrize("text", ["5e-05", "5E-5", "5.e-5", "5.0e-5", "0.00005", "+5e-5"])
def test_a_small_number_may_be_written_as_dvc_writes_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    content = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(r"(\n  beta: )\S+", rf"\g<1>{text}", content)
    assert changed != content
    file.write_text(changed, encoding="utf-8")
    assert load_settings(file).grpo.beta == 5e-5


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task.low", 200, "params.yaml: task: low (200.0) must be below high (100.0)"),
        ("task.high", 0, "must be below high"),
        ("task.resolution", 0, "task.resolution: input should be greater than 0, found 0"),
        ("task.bin_width", 1.5, "bin_width (1.5) must be a whole multiple of resolution (1.0)"),
        ("task.bin_width", 0.5, "bin_width (0.5) must be a whole multiple"),
        ("task.few", 101, "task: few (101) must not exceed many (100)"),
        ("task.question", "", "task.question: "),
        ("ingest.split_column", None, "ingest: split: given needs split_column"),
        ("ingest.source", "folders", "ingest.source: input should be 'gauges', 'folder', 'agedb', "),
        ("ingest.source", "release", "ingest: source: release and the section ingest.release go together"),
        ("ingest.release", RELEASE, "ingest: source: release and the section ingest.release go together"),
        ("ingest.release", RELEASE | {"test": None}, "ingest.release: train and test are annotation files both, or"),
        ("ingest.release", RELEASE | {"hub": HUB | {"id": "../x"}}, "ingest.release.hub.id: string should match"),
        ("ingest.release", RELEASE | {"hub": HUB | {"revision": "main"}}, "ingest.release.hub.revision: string should"),
        ("ingest.shard_mb", 257, "ingest.shard_mb: input should be less than or equal to 256, found 257"),
        ("ingest.max_per_label", 0, "ingest.max_per_label: input should be greater than 0, found 0"),
        ("ingest.subject_column", "who", "ingest: source: gauges has no subjects"),
        ("ingest.max_quarantined", 1.5, "ingest.max_quarantined: input should be less than or equal to 1, found 1.5"),
        ("ingest.max_quarantined", 0.1, "ingest: source: gauges makes its rows from a seed"),
        ("validate.near_bits", 17, "validate.near_bits: input should be less than or equal to 16, found 17"),
        ("validate.max_unseen", 2, "validate.max_unseen: input should be less than or equal to 1, found 2"),
        ("validate.drift.max_labels", 0, "validate.drift.max_labels: input should be greater than 0, found 0"),
        ("validate.drift.model", "", "validate.drift.model: string should have at least 1 character, found ''"),
        ("validate.severity.image_size", "info", "validate.severity.image_size: input should be 'error' or 'warning'"),
        ("model.tiny", None, "model: name: tiny needs the section model.tiny"),
        ("model.name", "no/such-model", "no/such-model is no local folder, so it needs a revision"),
        ("model.lora", {"r": 64}, "model.lora.alpha: missing"),
        ("model.lora", LORA | {"dropout": 1.1}, "model.lora.dropout: input should be less than or equal to 1"),
        ("model.max_pixels", 0, "model.max_pixels: input should be greater than 0, found 0"),
        ("sft.lr", 0, "sft.lr: input should be greater than 0, found 0"),
        ("sft.patience", -1, "sft.patience: input should be greater than 0, found -1"),
        ("sft.augment.rotate", 181, "sft.augment.rotate: input should be less than or equal to 180, found 181"),
        ("grpo.generations", 1, "grpo.generations: input should be greater than or equal to 2, found 1"),
        ("grpo.reward", "mea", "grpo.reward: input should be 'ccc', 'mae', 'mse' or 'pearson', found 'mea'"),
        ("grpo.beta", -0.1, "grpo.beta: input should be greater than or equal to 0, found -0.1"),
        ("grpo.vllm", VLLM | {"memory": 1.5}, "grpo.vllm.memory: input should be less than or equal to 1, found 1.5"),
        ("grpo.vllm", VLLM | {"mode": "both"}, "grpo.vllm.mode: input should be 'colocate' or 'server', found 'both'"),
        ("grpo.vllm", VLLM | {"port": 70000}, "grpo.vllm.port: input should be less than or equal to 65535"),
        ("register.max_unparseable", 2, "register.max_unparseable: input should be less than or equal to 1, found 2"),
        ("cluster.steps.sft.memory", "8 GB", "cluster.steps.sft.memory: string should match pattern"),
        ("cluster.steps.validate.cpu", 0, "cluster.steps.validate.cpu: input should be greater than 0, found 0"),
        ("cluster.steps.sft.tolerations", [TAINT | {"operator": "Equal"}], "operator: Equal and a value go together"),
        ("cluster.steps.sft.tolerations", [TAINT | {"value": "yes"}], "operator: Equal and a value go together"),
        (
            "cluster.steps.sft.tolerations",
            [TAINT | {"key": None, "operator": "Equal", "value": "yes"}],
            "cluster.steps.sft.tolerations.0: key: null needs operator: Exists",
        ),
        (
            "cluster.steps.register.tolerations",
            [TAINT, {"keys": "x", "operator": "Exists", "value": None, "effect": None}],
            "cluster.steps.register.tolerations.1.keys: unknown key, did you mean key?",
        ),
        ("cluster.secrets", [SECRET | {"env": {"HF-TOKEN": "token"}}], "cluster.secrets.0.env.HF-TOKEN"),
        ("cluster.secrets", [SECRET | {"env": {}}], "cluster.secrets.0.env: "),
        ("cluster.secrets", [SECRET, SECRET], "cluster: HF_TOKEN is set twice, by secrets or environment"),
        ("cluster.environment", {"HF_TOKEN": "hf_1"}, "cluster.environment: HF_TOKEN looks like a secret"),
        ("cluster.environment", {"MLFLOW_TRACKING_URI": "http://m"}, "cluster: MLFLOW_TRACKING_URI is set twice"),
        ("cluster.checkpoints", "Big Disk", "cluster.checkpoints: string should match pattern"),
    ],
)
def test_values_that_make_no_sense(path: str, value: Any, message: str, told: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    parts = tuple(path.split("."))
    section(raw, parts)[parts[-1]] = value
    assert message in told(raw)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_no_number_is_not_a_number(number: str, told: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["task"]["high"] = float(number.replace(".", ""))
    assert "params.yaml: task.high: input should be a finite number" in told(yaml.safe_dump(raw))


def test_every_fault_is_told_at_once(told: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["grpo"]["num_generations"] = raw["grpo"].pop("generations")
    raw["sft"]["lr"] = "fast"
    raw["evaluation"] = raw.pop("evaluate")
    assert told(raw).splitlines() == [
        "params.yaml: sft.lr: input should be a valid number, found 'fast'",
        "params.yaml: grpo.generations: missing; every setting is written out, add it",
        "params.yaml: grpo.num_generations: unknown key, did you mean generations?",
        "params.yaml: evaluate: missing; every setting is written out, add it",
        "params.yaml: evaluation: unknown key, did you mean evaluate?",
    ]


def test_a_key_like_no_other_gets_the_list(told: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["validate"]["zzz"] = 1
    known = (
        "drift, max_test_imbalance, max_unseen, max_val_imbalance, min_imbalance, min_rows_per_shot, min_side, "
        "near_bits, severity"
    )
    assert told(raw) == f"params.yaml: validate.zzz: unknown key, known keys: {known}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sections"),
        ("- a\n- b\n", "expected sections"),
        ("just words", "expected sections"),
        ("a: [1,\n", "not valid YAML"),
        ("a: 1\n\tb: 2\n", "not valid YAML"),
    ],
)
def test_no_settings_at_all(text: str, message: str, told: Callable[[Any], str]) -> None:
    assert told(text).startswith("params.yaml: ")
    assert message in told(text)


def test_a_key_that_stands_twice_is_named(told: Callable[[Any], str]) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    twice = text.replace("\nsft:\n", "\nsft:\n  patience: 7\n")
    assert twice != text
    message = told(twice)
    assert "patience" in message
    assert "twice" in message


def test_not_text(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConcordError, match="not valid YAML"):
        load_settings(file)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"nowhere\.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")
    with pytest.raises(ConcordError, match="directory"):
        load_settings(tmp_path)


def test_many_faults_fit_a_screen(told: Callable[[Any], str]) -> None:
    lines = told({"experiment": "x", "sft": {}, "grpo": {}}).splitlines()
    assert len(lines) <= 24
    assert lines[-1].startswith("and ")


def test_sections_take_the_place_of_the_file_s() -> None:
    params = ROOT / "params.yaml"
    grpo = json.dumps(RAW["grpo"] | {"reward": "mae"})
    settings = load_settings(params, {"grpo": grpo, "experiment": '"other"'})
    assert (settings.grpo.reward, settings.experiment) == ("mae", "other")
    assert settings.sft == load_settings(params).sft
    with pytest.raises(ConcordError, match=r"grpoo: unknown key, did you mean grpo\?"):
        load_settings(params, {"grpoo": grpo})
    with pytest.raises(ConcordError, match="not valid JSON"):
        load_settings(params, {"grpo": "{reward: mae}"})


def attribute(holder: BaseModel, key: str) -> str:
    """The name of the attribute that has this key in params.yaml."""
    return next(name for name, field in type(holder).model_fields.items() if key in (name, field.alias))


@EACH
def test_nothing_can_be_changed_after_loading(path: tuple[str, ...]) -> None:
    holder: Any = Settings.model_validate(full())
    for part in path[:-1]:
        holder = getattr(holder, attribute(holder, part))
    name = attribute(holder, path[-1])
    with pytest.raises(ValidationError, match="frozen"):
        setattr(holder, name, getattr(holder, name))


def test_whole_numbers_will_do_for_floats_and_nothing_else_is_converted() -> None:
    raw = copy.deepcopy(RAW)
    raw["task"]["low"] = 0
    assert isinstance(Settings.model_validate(raw).task.low, float)
    for wrong in ("0", True):
        raw["task"]["low"] = wrong
        with pytest.raises(ValidationError):
            Settings.model_validate(raw)

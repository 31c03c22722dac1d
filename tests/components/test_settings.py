"""params.yaml: its content, and the message for each kind of mistake in it."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from components.errors import ConcordError
from components.settings import WITHOUT_EFFECT, Settings, is_model_name, load_settings
from components.steps import STEPS
from tests.support.raw_folder import PUBLISHED
from tests.support.settings_files import HUB, LORA, PARAMS, RAW, RELEASE, VLLM, full_params, section

ROOT = Path(__file__).parents[2]
HUB_MODEL = RAW["model"] | {"name": "owner/model"}


@pytest.fixture
def message_of(tmp_path: Path) -> Callable[[Any], str]:
    """Loads wrong settings and returns the message."""
    return lambda content: PARAMS.message(content, tmp_path)


def test_params_yaml_loads_with_the_values_of_the_file(tmp_path: Path) -> None:
    settings = load_settings(ROOT / "params.yaml")
    assert settings.tree() == RAW
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(full_params()), encoding="utf-8")
    assert load_settings(file).tree() == full_params()


def test_params_yaml_has_exactly_the_sections_of_the_steps() -> None:
    for step in STEPS.values():
        assert set(step.sections) <= RAW.keys()
    assert {name for step in STEPS.values() for name in step.sections} == RAW.keys() - {"experiment", *WITHOUT_EFFECT}


@pytest.mark.parametrize("text", ["'0.5'", '"3"', '"1e-4"'])
def test_a_number_in_quotes_is_reported_as_text(text: str, message_of: Callable[[Any], str]) -> None:
    content = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(r"(\n  beta: )\S+", rf"\g<1>{text}", content)
    assert changed != content
    assert "params.yaml: grpo.beta: " in message_of(changed)
    assert "is text; write the number without quotes" in message_of(changed)


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
        ("task.question", " ", "task.question: write a question"),
        ("task.question", "What is in <image>?", "task.question: <image> is a special token"),
        ("task.question", "How old?<end_of_utterance>", "task.question: <end_of_utterance> is a special token"),
        ("task.question", "<|vision_start|>How old?", "task.question: <|vision_start|> is a special token"),
        ("task.question", "Is </s> it?", "task.question: </s> is a special token"),
        ("task.question", "How\x00old?", "task.question: write a question in printable characters"),
        (
            "task.resolution",
            4e-7,
            "from 0.0 to 100.0 in steps of 4e-07: an answer has at most 6 decimals",
        ),
        ("task.high", 2e12, "to 2000000000000.0 in steps of 1.0: an answer has at most 12 digits before the point"),
        ("task.high", 1e7, "task: 10,000,001 numbers from low (0.0) to high (10000000.0) in steps of 1.0, more than"),
        ("task.low", 0.5, "labels are whole multiples of resolution. Set low to one, such as 0"),
        ("register.model", "gauges/rare", "register.model: 'gauges/rare' cannot name a registered model, which has"),
        ("register.model", "gauges:1", "register.model: 'gauges:1' cannot name a registered model"),
        ("register.model", "..", "register.model: '..' cannot name a registered model"),
        ("register.model", " ", "register.model: ' ' cannot name a registered model"),
        ("register.model", "gauges@champion", "register.model: 'gauges@champion' cannot name a registered model"),
        ("register.model", "it's", "cannot name a registered model"),
        ("register.model", "x" * 257, "cannot name a registered model"),
        ("experiment", "gauges\n", "experiment: write a name in printable characters"),
        ("ingest.split_column", None, "ingest: split: given needs split_column"),
        ("ingest.source", "folders", "ingest.source: input should be 'gauges', 'folder', 'agedb', "),
        ("ingest.source", "release", "ingest: source: release and the section ingest.release go together"),
        ("ingest.release", RELEASE, "ingest: source: release and the section ingest.release go together"),
        (
            "ingest.release",
            RELEASE | {"test": None},
            "ingest.release: train and test are both annotation files or both",
        ),
        ("ingest.release", RELEASE | {"hub": HUB | {"id": "../x"}}, "ingest.release.hub.id: string should match"),
        ("ingest.release", RELEASE | {"hub": HUB | {"revision": "main"}}, "ingest.release.hub.revision: string should"),
        ("ingest.shard_mb", 257, "ingest.shard_mb: input should be less than or equal to 256, found 257"),
        ("ingest.max_per_label", 0, "ingest.max_per_label: input should be greater than 0, found 0"),
        ("ingest.subject_column", "who", "ingest: source: gauges has no subjects"),
        ("ingest.max_quarantined", 1.5, "ingest.max_quarantined: input should be less than or equal to 1, found 1.5"),
        ("ingest.max_quarantined", 0.1, "ingest: source: gauges draws its rows and quarantines none"),
        ("validate.near_bits", 17, "validate.near_bits: input should be less than or equal to 16, found 17"),
        ("validate.max_unseen", 2, "validate.max_unseen: input should be less than or equal to 1, found 2"),
        ("validate.drift.max_labels", 0, "validate.drift.max_labels: input should be greater than 0, found 0"),
        ("register.model", "", "register.model: string should have at least 1 character, found ''"),
        ("validate.severity.image_size", "info", "validate.severity.image_size: input should be 'error' or 'warning'"),
        ("model.tiny", None, "model: name: tiny needs the section model.tiny"),
        ("model.name", "no/such-model", "no/such-model is not a local folder, so it needs a revision"),
        (
            "model",
            HUB_MODEL | {"revision": "main"},
            "40 hexadecimal digits, found main. Branches",
        ),
        (
            "model",
            HUB_MODEL | {"revision": "6628554"},
            "40 hexadecimal digits, found 6628554",
        ),
        ("model.lora", {"r": 64}, "model.lora.alpha: missing"),
        ("model.lora", LORA | {"dropout": 1.1}, "model.lora.dropout: input should be less than or equal to 1"),
        ("model.max_pixels", 0, "model.max_pixels: input should be greater than 0, found 0"),
        ("sft.lr", 0, "sft.lr: input should be greater than 0, found 0"),
        ("sft.patience", -1, "sft.patience: input should be greater than 0, found -1"),
        ("sft.augment.rotate", 181, "sft.augment.rotate: input should be less than or equal to 180, found 181"),
        ("grpo.generations", 1, "grpo.generations: input should be greater than or equal to 2, found 1"),
        ("grpo.reward", "mea", "grpo.reward: input should be 'ccc', 'mae', 'mse', 'pearson' or 'crps', found 'mea'"),
        ("grpo.beta", -0.1, "grpo.beta: input should be greater than or equal to 0, found -0.1"),
        ("grpo.vllm", VLLM | {"memory": 1.5}, "grpo.vllm.memory: input should be less than or equal to 1, found 1.5"),
        ("grpo.vllm", VLLM | {"mode": "both"}, "grpo.vllm.mode: input should be 'colocate' or 'server', found 'both'"),
        ("grpo.vllm", VLLM | {"port": 70000}, "grpo.vllm.port: input should be less than or equal to 65535"),
        ("grpo.estimator", "exact", "grpo.estimator: input should be 'sampled', 'means' or 'policy', found 'exact'"),
        ("answer.from", "both", "answer.from: input should be 'distribution' or 'text', found 'both'"),
        (
            "answer.balance",
            2.0,
            "input should be less than or equal to 1.2, found 2.0",
        ),
        ("answer.coverage", 1.0, "answer.coverage: input should be less than 1, found 1.0"),
        ("register.max_unparseable", 2, "register.max_unparseable: input should be less than or equal to 1, found 2"),
    ],
)
def test_invalid_values_are_reported(path: str, value: Any, message: str, message_of: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    parts = tuple(path.split("."))
    section(raw, parts)[parts[-1]] = value
    assert message in message_of(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "policy", "reward": "crps"}, "grpo: estimator: policy has no reward crps"),
        ({"estimator": "means", "vllm": VLLM}, "grpo: estimator: means samples no answers: vllm must be null"),
        (
            {"estimator": "sampled", "reward": "ccc", "balance": 0, "prompts": 1},
            "grpo: prompts: the reward ccc compares",
        ),
        ({"estimator": "means", "reward": "ccc", "prompts": 1}, "grpo: prompts: the reward ccc compares the inputs"),
        ({"estimator": "policy", "reward": "pearson", "balance": 0, "prompts": 1}, "grpo: prompts: the reward pearson"),
        ({"estimator": "policy", "balance": 0.5}, "grpo: estimator: policy cannot put back the prior"),
        ({"estimator": "sampled", "balance": 0.5}, "grpo: estimator: sampled cannot put back the prior: balance must"),
    ],
)
def test_estimator_that_does_not_fit_is_reported(
    changes: dict[str, Any], message: str, message_of: Callable[[Any], str]
) -> None:
    raw = copy.deepcopy(RAW)
    raw["grpo"] |= PUBLISHED | changes
    assert message in message_of(raw)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
def test_infinite_and_nan_values_are_reported(number: str, message_of: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["task"]["high"] = float(number.replace(".", ""))
    assert "params.yaml: task.high: input should be a finite number" in message_of(yaml.safe_dump(raw))


def test_all_errors_are_reported_at_once(message_of: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["grpo"]["num_generations"] = raw["grpo"].pop("generations")
    raw["sft"]["lr"] = "fast"
    raw["evaluation"] = raw.pop("evaluate")
    assert message_of(raw).splitlines() == [
        "params.yaml: sft.lr: input should be a valid number, found 'fast'",
        "params.yaml: grpo.generations: missing; every setting is written out, add it",
        "params.yaml: grpo.num_generations: unknown key, did you mean generations?",
        "params.yaml: evaluate: missing; every setting is written out, add it",
        "params.yaml: evaluation: unknown key, did you mean evaluate?",
    ]


def test_an_unknown_key_without_a_similar_one_lists_the_known_keys(message_of: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW)
    raw["validate"]["zzz"] = 1
    known = (
        "drift, max_test_imbalance, max_unseen, max_val_imbalance, min_imbalance, min_rows_per_shot, min_side, "
        "near_bits, severity"
    )
    assert message_of(raw) == f"params.yaml: validate.zzz: unknown key, known keys: {known}"


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
def test_a_file_without_sections_is_reported(text: str, message: str, message_of: Callable[[Any], str]) -> None:
    assert message_of(text).startswith("params.yaml: ")
    assert message in message_of(text)


def test_a_duplicate_key_is_named(message_of: Callable[[Any], str]) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    twice = text.replace("\nsft:\n", "\nsft:\n  patience: 7\n")
    assert twice != text
    message = message_of(twice)
    assert "patience" in message
    assert "twice" in message


def test_a_binary_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConcordError, match="not valid YAML"):
        load_settings(file)


def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"nowhere\.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")
    with pytest.raises(ConcordError, match="directory"):
        load_settings(tmp_path)


def test_many_errors_are_cut_to_a_screen(message_of: Callable[[Any], str]) -> None:
    lines = message_of({"experiment": "x", "sft": {}, "grpo": {}}).splitlines()
    assert len(lines) <= 24
    assert lines[-1].startswith("and ")


def test_given_sections_replace_those_of_the_file() -> None:
    params = ROOT / "params.yaml"
    grpo = json.dumps(RAW["grpo"] | {"reward": "mae"})
    settings = load_settings(params, {"grpo": grpo, "experiment": '"other"'})
    assert (settings.grpo.reward, settings.experiment) == ("mae", "other")
    assert settings.sft == load_settings(params).sft
    with pytest.raises(ConcordError, match=r"grpoo: unknown key, did you mean grpo\?"):
        load_settings(params, {"grpoo": grpo})
    with pytest.raises(ConcordError, match="not valid JSON"):
        load_settings(params, {"grpo": "{reward: mae}"})


def test_whole_numbers_are_accepted_as_floats_and_nothing_else_is_converted() -> None:
    raw = copy.deepcopy(RAW)
    raw["task"]["low"] = 0
    assert isinstance(Settings.model_validate(raw).task.low, float)
    for wrong in ("0", True):
        raw["task"]["low"] = wrong
        with pytest.raises(ValidationError):
            Settings.model_validate(raw)


def test_a_section_cluster_is_an_error_that_names_the_new_file(message_of: Callable[[Any], str]) -> None:
    message = message_of(RAW | {"cluster": {"image": "concord:cpu"}})
    assert message.startswith("params.yaml: cluster: the settings of the cluster have a file of their own")
    assert "--cluster FILE or CONCORD_CLUSTER" in message
    assert "pipelines/clusters/default.yaml" in message


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "CCC-GRPO"),
        ({"reward": "mae"}, "GRPO (MAE)"),
        ({"estimator": "policy"}, "exact CCC-GRPO"),
        ({"estimator": "means"}, "expected CCC"),
        ({"estimator": "means", "reward": "crps"}, "CRPS"),
        ({"estimator": "means", "reward": "crps", "balance": 0.75}, "CRPS, balance 0.75"),
    ],
)
def test_method_has_a_name(changes: dict[str, Any], method: str, tmp_path: Path) -> None:
    raw = copy.deepcopy(RAW)
    raw["grpo"] |= PUBLISHED | changes
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_settings(tmp_path / "params.yaml").grpo.method == method


@pytest.mark.parametrize(
    ("section_", "changes"),
    [("model", {"lora": LORA}), ("model", {"compile": True}), ("grpo", {**PUBLISHED, "vllm": VLLM})],
)
def test_what_cannot_be_sharded_is_named(
    section_: str, changes: dict[str, Any], message_of: Callable[[Any], str]
) -> None:
    content = full_params() | {"launcher": RAW["launcher"] | {"sharding": "full"}}
    unset = {"model": {"lora": None, "compile": False}, "grpo": {"vllm": None}}
    content |= {name: RAW[name] | changed for name, changed in unset.items()}
    content[section_] = content[section_] | changes
    message = message_of(content)
    assert "launcher.sharding: full" in message
    assert f"Set it to none, or switch {section_}.{list(changes)[-1]} off" in message


def test_an_experiment_that_names_no_model_needs_register_model(message_of: Callable[[Any], str]) -> None:
    raw = copy.deepcopy(RAW) | {"experiment": "team/gauges"}
    raw["register"]["model"] = None
    message = message_of(raw)
    assert "experiment: 'team/gauges' cannot name the registered model" in message
    assert "or set register.model" in message


@pytest.mark.parametrize("name", ["gauges", "bone age 3b", "gauges-v1.2_x", "7b", "Zähler", "a.", "x" * 256])
def test_names_that_are_taken_are_taken_by_the_registry_too(name: str) -> None:
    from mlflow.utils.validation import _validate_experiment_name, _validate_model_name

    assert is_model_name(name)
    _validate_model_name(name)
    _validate_experiment_name(name)

"""A model that holds a file which can run code is refused before any of it is loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.__main__ import main
from components.commands.dry_run.build import load_config, load_processor
from components.errors import ConcordError
from components.settings import READER, Settings
from components.shared.io.atomic import write_json
from components.shared.model.loading import base_model, load, save
from components.shared.model.model_files import check_model_files
from tests.support.gauge_world import tiny, write_params
from tests.support.gray_world import GrayWorld


class Planted:
    """Unpickling it makes the folder `ran`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture(scope="module")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; do not write there."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save(*tiny(settings), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def planted(name: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Planted()))

    return plant


def with_key(name: str, *keys: str) -> Callable[[Path], None]:
    """Names code in a config, below `keys`."""

    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).exists() else {}
        part = content
        for key in keys:
            part = part.setdefault(key, {})
        part["auto_map"] = {"AutoConfig": "code.Config", "AutoProcessor": "code.Processor"}
        write_json(folder / name, content)

    return plant


def link_to(target: str, name: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder.parent / "outside").mkdir()
        (folder.parent / "outside" / "file").write_text("{}", encoding="utf-8")
        (folder / name).symlink_to(target)

    return plant


def index_of(shard: str) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "model.safetensors.index.json", {"weight_map": {"lm_head.weight": shard}})


BAD = [
    (planted("pytorch_model.bin"), "pytorch_model.bin: a pickle"),
    (planted("training_args.PT"), "training_args.PT: a pickle"),
    (planted("vocabulary.pkl"), "vocabulary.pkl: a pickle"),
    (planted("last.ckpt"), "last.ckpt: a pickle"),
    (planted("adapter/adapter_model.bin"), "adapter/adapter_model.bin: a pickle"),
    (planted("modeling.py"), "modeling.py: Python code"),
    (planted("custom_generate/generate.py"), "custom_generate/generate.py: Python code"),
    (with_key("config.json"), "config.json: auto_map names Python code"),
    (with_key("config.json", "text_config"), "config.json: auto_map names Python code"),
    (with_key("processor_config.json"), "processor_config.json: auto_map names Python code"),
    (with_key("tokenizer_config.json"), "tokenizer_config.json: auto_map names Python code"),
    (with_key("preprocessor_config.json"), "preprocessor_config.json: auto_map names Python code"),
    (with_key("adapter/adapter_config.json"), "adapter/adapter_config.json: auto_map names Python code"),
    (link_to("../outside/file", "notes.txt"), "notes.txt: a link that leaves the folder"),
    (link_to("../outside", "adapter"), "adapter: a link that leaves the folder"),
    (link_to("/nowhere/at/all", "notes.txt"), "notes.txt: a link that leaves the folder"),
    (index_of("../outside.safetensors"), "model.safetensors.index.json: names '../outside.safetensors'"),
    (index_of("weights.data"), "model.safetensors.index.json: names 'weights.data'"),
]


@pytest.mark.parametrize(("plant", "message"), BAD, ids=[message.partition(":")[0] for _, message in BAD])
def test_what_can_run_code_is_refused_by_name(
    plant: Callable[[Path], None], message: str, settings: Settings, folder: Path
) -> None:
    plant(folder)
    named = settings.model_copy(update={"model": settings.model.model_copy(update={"name": str(folder)})})
    calls: tuple[Callable[[], object], ...] = (
        lambda: load(folder, settings.model),
        lambda: base_model(named, folder),
        lambda: load_processor(named),
        lambda: load_config(named),
    )
    for call in calls:
        with pytest.raises(ConcordError) as error:
            call()
        assert str(error.value).startswith(f"{folder}: {message}")
        assert "Remove" in str(error.value) or "Save" in str(error.value) or "Copy" in str(error.value)
    assert not Path("ran").exists()


def test_what_models_and_caches_have_is_taken(whole: Path, settings: Settings, tmp_path: Path) -> None:
    """The folder of a hub's cache, one that DVC linked, and texts beside the weights."""
    hub = tmp_path / "models--a--b"
    cache = tmp_path / "cache" / "files" / "md5" / "ab"
    for store, snapshot, name in (
        (hub / "blobs", hub / "snapshots" / "0a1b", "c0ffee"),
        (cache, tmp_path / "linked", "0" * 30),
    ):
        store.mkdir(parents=True)
        shutil.copytree(whole, snapshot)
        (snapshot / "model.safetensors").rename(store / name)
        (snapshot / "model.safetensors").symlink_to(store / name)
        load(snapshot, settings.model)
    for name in ("merges.txt", "tokenizer.model", "LICENSE", "README.md", ".gitattributes", "validation.parquet"):
        (tmp_path / "linked" / name).write_text("text", encoding="utf-8")
    (tmp_path / "linked" / "again.json").symlink_to("config.json")
    (tmp_path / "linked" / "generation_config.json").write_text('{"auto_map": null}', encoding="utf-8")
    check_model_files(tmp_path / "linked")
    (tmp_path / "whole").symlink_to(whole)
    check_model_files(tmp_path / "whole")


def test_a_model_of_the_hub_that_names_code_is_refused(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its files lie in the cache, as after a download."""
    commit = "0a1b" * 10
    snapshot = tmp_path / "hub" / "models--owner--reader" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load("owner/reader", settings.model, commit)
    with_key("preprocessor_config.json")(snapshot)
    with pytest.raises(ConcordError, match=r"^owner/reader: preprocessor_config\.json: auto_map names Python code"):
        load("owner/reader", settings.model, commit)


def test_predict_refuses_a_folder_with_a_pickle(
    gray: GrayWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(gray.sft, "model")
    write_json(Path("model", READER), gray.settings.reader().tree())
    planted("optimizer.pt")(Path("model"))
    Path("a.png").write_bytes(b"")
    assert main(["predict", "a.png", "--model", "model"]) == 1
    assert "error model: optimizer.pt: a pickle, which can run code when it is read. Remove it" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not Path("ran").exists()

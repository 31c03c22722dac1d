"""The command: what it writes, what it shows, and what it refuses."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from components.commands.init import ask, command
from components.commands.init.command import main, next_command
from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.tracking.hashes import dvc_hash
from tests.support.data_sets import SHAPES, grey
from tests.support.raw_folder import SHARED_DATA, content
from tests.support.s3_server import S3Server

NAMES = ("table", "subjects", "imagefolder", "parquet", "names")


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shape -> what to give to the command."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    return {name: SHAPES[name](folder) for name, folder in folders.items()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Runs the command in an empty folder and returns the settings that it writes."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Settings:
        main([str(word) for word in words])
        return load_settings(Path("params.yaml"))

    return run


def test_the_settings_follow_from_the_data(run: Callable[..., Settings], data_sets: dict[str, Path]) -> None:
    settings = run(data_sets["table"], "--name", "ages")
    task, ingest = settings.task, settings.ingest
    assert (settings.experiment, settings.registry.model) == ("ages", None)
    assert (task.question, task.unit, task.low, task.high) == ("How old is the person?", "years", 0, 90)
    assert (task.resolution, task.bin_width) == (10, 10)
    assert (ingest.image_column, ingest.target_column, ingest.split_column) == ("photo", "age", "part")
    assert ingest.path == data_sets["table"].parent.as_posix()
    assert settings.model.name == "tiny"
    assert settings.model.tiny is not None
    assert settings.model.tiny.image_size == 32


def test_flags_win_over_guesses(run: Callable[..., Settings], data_sets: dict[str, Path]) -> None:
    flags = {"question": "How bright?", "unit": "%", "low": -10, "high": 110, "resolution": 5, "bin-width": 10}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    settings = run(data_sets["table"], "--split", "balanced", *words)
    task = settings.task
    assert [task.question, task.unit, task.low, task.high, task.resolution, task.bin_width] == list(flags.values())
    assert (settings.ingest.split, settings.ingest.split_column) == ("balanced", None)


def test_a_model_folder_gets_the_hash_of_its_content(
    run: Callable[..., Settings], data_sets: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    settings = run(data_sets["names"], "--model", str(tmp_path / "model"))
    assert settings.model.revision == dvc_hash(tmp_path / "model")


def test_a_pretrained_model_gets_the_settings_of_its_recipe(
    run: Callable[..., Settings], data_sets: dict[str, Path]
) -> None:
    settings = run(data_sets["names"], "--model", f"Qwen/Qwen2.5-VL-3B-Instruct@{'0' * 40}")
    assert (settings.model.name, settings.model.revision) == ("Qwen/Qwen2.5-VL-3B-Instruct", "0" * 40)
    assert settings.model.lora is not None
    assert settings.sft.lr < 1e-4
    assert settings.launcher.num_processes == 1


def test_comments_and_order_of_the_recipe_are_kept(run: Callable[..., Settings], data_sets: dict[str, Path]) -> None:
    run(data_sets["names"])
    written = Path("params.yaml").read_text(encoding="utf-8")
    recipe = command.template_of("tiny").read_text(encoding="utf-8")
    assert written.startswith("# Written by `python -m components init ")
    assert comments(written) == comments(recipe)
    assert list(yaml.safe_load(written)) == list(yaml.safe_load(recipe))
    assert "water" not in written


def comments(text: str) -> dict[str, str]:
    """Comment after each key; keys of different sections are told apart by their order."""
    found = re.findall(r"^ *(\w+):.*?[ ]# (.*)$", text, re.MULTILINE)
    return {f"{k} {key}": comment for k, (key, comment) in enumerate(found)}


def test_the_data_is_not_changed_and_the_next_command_is_shown(
    run: Callable[..., Settings], data_sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(data_sets["parquet"])
    run(data_sets["parquet"])
    assert content(data_sets["parquet"]) == before
    shown = capsys.readouterr().out
    assert "params.yaml written. Next: make run" in shown
    assert "285 rows" in shown
    assert "16 to 32 pixels wide" in shown
    assert re.search(r"^ *1 +4\d █+", shown, re.MULTILINE)
    assert "█ few" in shown


def test_an_existing_params_file_is_only_replaced_with_force(
    run: Callable[..., Settings], data_sets: dict[str, Path]
) -> None:
    Path("params.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConcordError, match=r"params\.yaml: exists\. Replace it with --force, or .* --params OUT"):
        run(data_sets["names"])
    assert Path("params.yaml").read_text(encoding="utf-8") == "mine"
    run(data_sets["names"], "--force")


@pytest.mark.parametrize(
    ("path", "expected"), [("photos", "make run"), ("data", "dvc add data && make run"), ("/photos", "make run")]
)
def test_data_of_the_repository_is_versioned_first(path: str, expected: str, settings: Settings) -> None:
    changed = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"path": path})})
    assert next_command(Path("params.yaml"), changed) == expected
    assert next_command(Path("x.yaml"), changed) == "python -m components ingest --params x.yaml"


def test_errors_are_shown_with_row_and_remedy(
    run: Callable[..., Settings], data_sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(data_sets["table"].parent, folder)
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))
    rows[3][1], rows[4][0], rows[6][0] = "12 years", "gone.png", rows[5][0]
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    (folder / rows[8][0]).write_bytes(b"no image")
    (folder / rows[9][0]).write_bytes((folder / rows[7][0]).read_bytes())
    run(folder)
    output = capsys.readouterr().out
    for part in (
        "5 of 285 rows have an error",
        "labels.csv:4: age: target with a unit '12 years'; write 12, without years",
        "labels.csv:5: photo: missing file 'gone.png'; add the file or remove the row",
        "labels.csv:7: photo: image listed twice",
        "image does not open",
        "same image twice",
        "ingest.max_quarantined",
    ):
        assert part in output, part


@pytest.mark.parametrize(
    ("shape", "flags", "message"),
    [
        ("subjects", [], r"readings\.tsv: the target could be any of 'bone age', 'height'\. .*--target 'bone age'"),
        ("table", ["--target", "agee"], r"no column 'agee' \(--target\)\. Columns: photo, age, part, comment"),
        ("table", ["--split", "fold"], r"no column 'fold' \(--split\)"),
        ("table", ["--split", "subject"], r"--split subject needs a column .*--subject COLUMN"),
        ("table", ["--low", "50", "--high", "20"], r"params\.yaml: task: low \(50\.0\) must be below high \(20\.0\)"),
        ("table", ["--resolution", "0"], r"--resolution 0: must be above 0"),
        ("table", ["--bin-width", "-5"], r"--bin-width -5: must be above 0"),
        ("table", ["--model", "Qwen/Qwen2.5-VL-3B-Instruct@6628554"], r"--model .* with its commit \(40 hexadecimal"),
        ("table", ["--model", "Qwen/Qwen2.5-VL-3B-Instruct"], r"--model .*: give tiny, .* or a hub id with its commit"),
        ("names", ["--pattern", "age-("], r"--pattern age-\(: not a regular expression"),
        ("names", ["--pattern", "age-([0-9]+)"], r"no named group\. Mark the number with \(\?P<target>"),
        ("names", ["--pattern", "(?P<target>xyz)"], r"errors, and none of the 285 rows can be used"),
    ],
)  # fmt: skip
def test_wrong_words_are_errors(
    shape: str, flags: list[str], message: str, run: Callable[..., Settings], data_sets: dict[str, Path]
) -> None:
    with pytest.raises(ConcordError, match=message):
        run(data_sets[shape], *flags)
    assert not Path("params.yaml").exists()


def test_a_terminal_is_asked(
    run: Callable[..., Settings], data_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["2", "", "cm"])
    monkeypatch.setattr(ask, "on_terminal", lambda: True)
    monkeypatch.setattr(Console, "input", lambda *args, **kwargs: next(answers))
    task = run(data_sets["subjects"], "--split", "balanced").task
    assert (task.question, task.unit, task.high) == ("What is the height?", "cm", 6)


def test_tables_of_one_data_set_need_the_same_columns(run: Callable[..., Settings], tmp_path: Path) -> None:
    for split, keys in (("train", ["file_name", "age"]), ("test", ["age", "file_name"])):
        folder = tmp_path / "parts" / split
        folder.mkdir(parents=True)
        for k in range(60):
            (folder / f"{k}.png").write_bytes(grey(k % 7, k))
        rows = [{"file_name": f"{k}.png", "age": min(k % 7, k % 3)} for k in range(60)]
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
        (folder / "metadata.jsonl").write_text("".join(lines))
    assert run(tmp_path / "parts").ingest.split == "given-test"
    (tmp_path / "parts" / "test" / "metadata.jsonl").write_text('{"file_name": "1.png"}\n')
    with pytest.raises(
        ConcordError, match=r"train/metadata\.jsonl: it and .*test/metadata\.jsonl do not both have 'age'"
    ):
        run(tmp_path / "parts", "--force")


def test_subjects_stay_in_one_split(run: Callable[..., Settings], data_sets: dict[str, Path]) -> None:
    ingest = run(data_sets["subjects"], "--target", "bone age").ingest
    assert (ingest.split, ingest.subject_column, ingest.image_folder) == ("subject", "patient_id", "photos")


def test_subjects_in_two_splits_are_reported(
    run: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    rows = ["image,age,person,split"]
    for k in range(120):
        (folder / f"{k}.png").write_bytes(grey(k % 7, k))
        rows.append(f"{k}.png,{min(k % 7, k % 3)},p{k // 3},{'test' if k % 3 == 0 else 'train'}")
    (folder / "t.csv").write_text("\n".join(rows))
    assert run(folder).ingest.split == "given-test"
    assert "40 subjects, such as 'p0', are in more than one split" in capsys.readouterr().out
    assert run(folder, "--split", "subject", "--force").ingest.split == "subject"
    assert run(folder, "--subject", "", "--force").ingest.subject_column is None
    assert "subjects" not in capsys.readouterr().out.partition("written")[2]


def test_balanced_data_gets_limits_that_it_meets(
    run: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(60):
        folder = tmp_path / "even" / str(k % 4 * 10)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.png").write_bytes(grey(k % 4 * 10, k))
    settings = run(tmp_path / "even")
    assert settings.validation.min_imbalance == 1
    assert settings.validation.severity.test_rows_many == "warning"
    assert "Plain SFT may be enough" in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED_DATA / "meter-digits").is_dir(), reason="shared/data/meter-digits is missing")
def test_the_meter_digits(run: Callable[..., Settings]) -> None:
    settings = run(SHARED_DATA / "meter-digits")
    task = settings.task
    assert (task.low, task.high, task.resolution, task.many, task.few) == (0, 9, 0.1, 100, 20)
    assert (settings.experiment, settings.ingest.target_column) == ("meter-digits", "reading")


@pytest.mark.usefixtures("gateway")
def test_a_bucket_is_read(s3_server: S3Server, data_sets: dict[str, Path]) -> None:
    files = content(data_sets["parquet"])
    for name, data in files.items():
        s3_server.put(f"init/{name}", data)
    main(["s3://open/init"])
    settings = load_settings(Path("params.yaml"))
    assert (settings.ingest.path, settings.ingest.csv) == ("s3://open/init", "data/*.parquet")
    assert settings.experiment == "init"

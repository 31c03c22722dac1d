"""The source `release`: the formats that the authors publish, and errors in them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConcordError
from components.ingest.quarantine import Quarantine
from components.ingest.sources.release import read_release
from components.settings import Settings
from components.shared.rows.rows import Row
from tests.support.packed import Mode, conversation, pack, sample
from tests.support.raw_folder import encoded, write_params

# Ages in train and test; train gives one row each of 30 and 40 to val.
AGES = {"train": [30, 30, 30, 40, 40, 40, 90], "test": [30, 90]}
RELEASE = {"subset": None, "train": None, "val": None, "test": None, "hub": None}
INGEST = {"source": "release", "split": "given-test", "max_per_label": 1}


def read(folder: Path, tmp_path: Path, ingest: dict[str, Any] | None = None, **release: Any) -> list[tuple[str, Row]]:
    return list(read_release(folder, settings(tmp_path, ingest, **release)))


def settings(tmp_path: Path, ingest: dict[str, Any] | None = None, **release: Any) -> Settings:
    changed = {**INGEST, "release": RELEASE | release, **(ingest or {})}
    return write_params(tmp_path / "params.yaml", ingest=changed, task={"question": "How old?"})


def image(split: str, k: int) -> bytes:
    return encoded(k + (100 if split == "test" else 0), "JPEG", size=8)


def write_hub_format(folder: Path, mode: Mode = "w", suffix: str = ".tar") -> dict[str, tuple[str, float, bytes]]:
    """Writes the hub's format: SUBSET/SPLIT/*.tar, three samples per shard, with keys that start from 0 in each.

    Returns:
        Row id -> split, target and image.
    """
    expected = {}
    for split, ages in AGES.items():
        for shard in range(0, len(ages), 3):
            members = []
            for k, age in enumerate(ages[shard : shard + 3]):
                data = image(split, shard + k)
                members += sample(f"{k:06d}", data, str(age) if k else age)
                expected[f"{split}/agedb-{split}-{shard:06d}/{k:06d}.jpg"] = (split, float(age), data)
            pack(folder / "agedb" / split / f"agedb-{split}-{shard:06d}{suffix}", members, mode)
    return expected


@pytest.mark.parametrize(("mode", "suffix"), [("w", ".tar"), ("w:gz", ".tar.gz")])
def test_shards_with_images_and_annotations_are_read(tmp_path: Path, mode: Mode, suffix: str) -> None:
    expected = write_hub_format(tmp_path / "data", mode, suffix)
    rows = read(tmp_path / "data", tmp_path, subset="agedb")
    assert {row.id: (row.target, row.image) for _, row in rows} == {
        id: (t, data) for id, (_, t, data) in expected.items()
    }
    for split, row in rows:
        assert expected[row.id][0] == ("train" if split == "val" else split)
        assert row.question == "How old?"
        member, name = row.origin.rsplit(" ", 1)
        assert member == f"{row.id.rpartition('/')[0]}{suffix}:{row.id.rpartition('/')[2]}"
        assert name == row.id
    assert sorted(row.target for split, row in rows if split == "val") == [30, 40]
    assert [split for split, _ in rows] == ["train"] * 5 + ["val"] * 2 + ["test"] * 2


def write_repository_format(folder: Path, path_of: Callable[[str, int], str] | None = None) -> dict[str, Any]:
    """Writes the repository's format: an annotation file per split, which names the images; returns the settings."""
    path_of = path_of or (lambda split, k: f"images/{split}_{k}.5_x.jpg")
    folder.mkdir(parents=True, exist_ok=True)
    train = [
        conversation(k, path_of("train", k), str(age) if k % 2 else f"<answer> {age} </answer>")
        for k, age in enumerate(AGES["train"])
    ]
    test = [{"image": path_of("test", k), "problem": "How old?", "solution": age} for k, age in enumerate(AGES["test"])]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train), encoding="utf-8")
    (folder / "test.json").write_text(json.dumps(test, indent=2), encoding="utf-8")
    return {"train": "train.jsonl", "test": "test.json"}


def all_images() -> dict[str, bytes]:
    return {f"images/{split}_{k}.5_x.jpg": image(split, k) for split in AGES for k in range(len(AGES[split]))}


def check(rows: list[tuple[str, Row]]) -> None:
    """Asserts that every row of AGES occurs once, with its own image."""
    assert len(rows) == 9
    for split, row in rows:
        source_split = "train" if split == "val" else split
        (k,) = (k for k in range(len(AGES[source_split])) if image(source_split, k) == row.image)
        assert row.target == AGES[source_split][k]


def test_annotation_files_with_image_files_are_read(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    (tmp_path / "data" / "images").mkdir()
    for name, data in all_images().items():
        (tmp_path / "data" / name).write_bytes(data)
    rows = read(tmp_path / "data", tmp_path, **release)
    check(rows)
    origins = {row.id: row.origin for _, row in rows}
    assert origins["images/train_2.5_x.jpg"] == "train.jsonl:3 images/train_2.5_x.jpg"
    assert origins["images/test_1.5_x.jpg"] == "test.json:7 images/test_1.5_x.jpg"  # the line of the annotation's "{"


@pytest.mark.parametrize("prefix", ["images/", "", "agedb/images/"])
def test_annotation_files_with_images_in_shards_are_read(tmp_path: Path, prefix: str) -> None:
    """With any folders before the names in the shards."""
    release = write_repository_format(tmp_path / "data")
    files = [(prefix + name.removeprefix("images/"), data) for name, data in all_images().items()]
    pack(tmp_path / "data" / "shards" / "00.tar", files[:4])
    pack(tmp_path / "data" / "shards" / "01.tar", files[4:])
    check(read(tmp_path / "data", tmp_path, **release))


def test_images_of_the_same_name_are_found_in_the_shards_of_their_split(tmp_path: Path) -> None:
    release = write_repository_format(
        tmp_path / "data", lambda split, k: f"{'images' if split == 'train' else '.'}/{k}.jpg"
    )
    for split, ages in AGES.items():
        pack(tmp_path / "data" / split / "0.tar", {f"{k}.jpg": image(split, k) for k in range(len(ages))})
    check(read(tmp_path / "data", tmp_path, **release))


def test_names_given_by_the_authors_unpacking_script_are_found_in_the_shards(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data", lambda split, k: f"images/{split}/{split}-00_{k:06d}.jpg")
    for split, ages in AGES.items():
        pack(tmp_path / "data" / split / f"{split}-00.tar", {f"{k:06d}.jpg": image(split, k) for k in range(len(ages))})
    check(read(tmp_path / "data", tmp_path, **release))


def test_a_val_file_is_read_as_val(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    pack(tmp_path / "data" / "0.tar", all_images())
    lines = (tmp_path / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "train.jsonl").write_text("".join(lines[1:]))
    (tmp_path / "data" / "val.jsonl").write_text("\ufeff" + lines[0])
    rows = read(tmp_path / "data", tmp_path, {"split": "given"}, **release, val="val.jsonl")
    assert [row.id for split, row in rows if split == "val"] == ["images/train_0.5_x.jpg"]
    check(rows)


def test_another_question_in_the_release_prints_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_hub_format(tmp_path / "data")
    read(tmp_path / "data", tmp_path, subset="agedb")
    assert "note:" not in capfd.readouterr().err
    other = sample("a", image("train", 50), 30, problem="<image>\nWhat [bold]age?")
    pack(tmp_path / "data" / "agedb" / "train" / "z.tar", other)
    rows = read(tmp_path / "data", tmp_path, subset="agedb")
    stderr = capfd.readouterr().err
    assert "note: the release asks 'What [bold]age?'; task.question is used instead" in stderr
    assert {row.question for _, row in rows} == {"How old?"}


TRAIN: dict[str, Any] = {"image": "images/train_0.5_x.jpg", "problem": "How old?", "solution": 30}
BAD_FILES: dict[str, tuple[str, str]] = {
    "no JSON": ('{"image": "a.jpg", ', r"train\.jsonl:1: not JSON; Expecting property name .* at character 20"),
    "no object": ("[1]x", r"train\.jsonl: 'x' follows the end of the list"),
    "no end": ('[{"a": 1}', r"train\.jsonl: the list has no closing bracket"),
    "a hole in a list": ("[\n{},\n,\n]", r"train\.jsonl:3: not JSON \(Expecting value"),
    "deep": ("[" * 100_000, r"train\.jsonl:1: not JSON \(nested too deeply"),
    "a number": ("7\n", r"train\.jsonl:1: no annotation; write \{"),
    "a long number": ("9" * 5000, r"train\.jsonl:1: not JSON; Exceeds the limit"),
    "no image": (json.dumps({**TRAIN, "image": None}), r"train\.jsonl:1: image: no image"),
    "two images": (json.dumps({**TRAIN, "image": ["a", "b"]}), r'image: no image \'\["a", "b"\]\''),
    "missing image": (json.dumps({**TRAIN, "image": "none.jpg"}), r"jsonl:1: image: missing file 'none\.jpg'"),
    "outside": (json.dumps({**TRAIN, "image": "../params.yaml"}), r"image: image outside the folder"),
    "absolute": (json.dumps({**TRAIN, "image": "/etc/hostname"}), r"image: image outside the folder"),
    "NaN": (json.dumps({**TRAIN, "solution": float("nan")}), r"solution: target not finite"),
    "text": (json.dumps({**TRAIN, "solution": "old"}), r"solution: target is not a number 'old'"),
    "decimal comma": (json.dumps({**TRAIN, "solution": "12,5"}), r"decimal comma '12,5'; write 12\.5"),
    "true": (json.dumps({**TRAIN, "solution": True}), r"solution: no answer 'true'"),
    "no solution": (json.dumps({"image": TRAIN["image"], "problem": "?"}), r"solution: no answer; write a number"),
    "no question": (json.dumps({"image": TRAIN["image"], "solution": 3}), r"problem: no question"),
    "empty tags": (json.dumps(conversation(0, TRAIN["image"], "<answer> </answer>")), r"conversations: empty target"),
    "one turn": (
        json.dumps({"image": TRAIN["image"], "conversations": [{"from": "human", "value": "?"}]}),
        r"conversations: missing turn .*; add \{\"from\": \"gpt\"",
    ),
    "twice": ("\n".join([json.dumps(TRAIN)] * 2), r"jsonl:2: image: image listed twice .*train\.jsonl:1 has it too"),
    "twice, spelled otherwise": (
        "\n".join(json.dumps({**TRAIN, "image": name}) for name in (TRAIN["image"], "train_0.5_x.jpg")),
        r"jsonl:2: image: image listed twice .*train\.jsonl:1 has it too",
    ),
    "not UTF-8": ('{"image": "ß"}\n', r"train\.jsonl:1: not UTF-8 \(byte 0xdf\)"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_the_error_for_a_bad_annotation_names_its_line(tmp_path: Path, case: str) -> None:
    release = write_repository_format(tmp_path / "data")
    pack(tmp_path / "data" / "0.tar", all_images())
    text, message = BAD_FILES[case]
    (tmp_path / "data" / "train.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConcordError, match=message):
        read(tmp_path / "data", tmp_path, **release)


def test_the_errors_of_a_file_are_reported_together(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    pack(tmp_path / "data" / "0.tar", all_images())
    (tmp_path / "data" / "train.jsonl").write_text("{}\n" * 30)
    with pytest.raises(ConcordError) as caught:
        read(tmp_path / "data", tmp_path, **release)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("train.jsonl: 90 errors")
    assert len(lines) == 12


def test_an_image_in_several_shards_is_an_error(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    pack(tmp_path / "data" / "a" / "0.tar", all_images())
    pack(tmp_path / "data" / "b" / "0.tar", {"images/train_0.5_x.jpg": b"another"})
    with pytest.raises(ConcordError, match=r"train\.jsonl:1: image: image in several shards"):
        read(tmp_path / "data", tmp_path, **release)


BAD_SHARDS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "no annotation": ([("a.jpg", b"1")], r"z\.tar:1: no pair of image and annotation"),
    "no image": (sample("a", b"1", 3)[1:], r"z\.tar:1: no pair of image and annotation"),
    "two images": ([*sample("a", b"1", 3), ("a.png", b"2")], r"z\.tar:1: no pair of image and annotation"),
    "no JSON": ([("b.json", b"{"), ("b.jpg", b"1")], r"z\.tar:1: not JSON; Expecting property name"),
    "JSON of no text": ([("b.json", b"\xff"), ("b.jpg", b"1")], r"z\.tar:1: not JSON; it is not UTF-8"),
    "long JSON": (
        [("b.json", b" " * (2**20 + 1)), ("b.jpg", b"1")],
        r"z\.tar:1: not JSON; it has 1,048,577 bytes, more than 1,048,576",
    ),
    "empty image": ([*sample("a", b"1", 3), *sample("b", b"", 3)], r"z\.tar:2: empty file 'b'"),
    "a text": ([*sample("a", b"1", 3), *sample("b", b"1", "x")], r"z\.tar:2: solution: target is not a number 'x'"),
    "leads out": (sample("../a", b"1", 3), r"z\.tar: '\.\./a\.jpg' is a path outside the archive"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_the_error_for_a_bad_sample_names_shard_and_number(tmp_path: Path, case: str) -> None:
    write_hub_format(tmp_path / "data")
    members, message = BAD_SHARDS[case]
    pack(tmp_path / "data" / "agedb" / "train" / "z.tar", members)
    with pytest.raises(ConcordError, match=message):
        read(tmp_path / "data", tmp_path, subset="agedb")


def test_a_shard_outside_the_folders_of_the_splits_is_an_error(tmp_path: Path) -> None:
    pack(tmp_path / "data" / "agedb" / "constraint" / "0.tar", sample("a", b"1", 3))
    with pytest.raises(ConcordError, match=r"constraint/0\.tar: its path names no split, .*Put it in train/, val/ or"):
        read(tmp_path / "data", tmp_path, subset="agedb")


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (
            {"subset": "agedbb"},
            r"agedbb: no such folder\. Folders there: agedb, other\. Correct ingest\.release\.subset",
        ),
        ({"subset": "../elsewhere"}, r"ingest\.release\.subset: \.\./elsewhere is outside"),
        ({"subset": "other"}, r"other: no shards \(\*\.tar, \*\.tar\.gz, \*\.tgz\) in train/ and test/"),
        ({"subset": "agedb", "train": "t.jsonl", "test": "t.json"}, r"t\.jsonl: cannot be read \(No such file"),
        ({"subset": "agedb", "train": "../../x", "test": "t.json"}, r"ingest\.release\.train: x is outside"),
    ],
)
def test_settings_that_do_not_match_the_folder_are_errors(
    tmp_path: Path, release: dict[str, Any], message: str
) -> None:
    write_hub_format(tmp_path / "data")
    (tmp_path / "data" / "other").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ConcordError, match=message):
        read(tmp_path / "data", tmp_path, **release)


def test_the_error_for_split_given_without_val_rows_suggests_given_test(tmp_path: Path) -> None:
    write_hub_format(tmp_path / "data")
    with pytest.raises(ConcordError, match=r"9 rows, none of them in val\. .*given-test \(takes val from train\)"):
        read(tmp_path / "data", tmp_path, {"split": "given"}, subset="agedb")


def test_the_error_for_a_file_deleted_during_reading_names_its_row(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    (tmp_path / "data" / "images").mkdir()
    for name, data in all_images().items():
        (tmp_path / "data" / name).write_bytes(data)
    rows = read_release(tmp_path / "data", settings(tmp_path, **release))
    for name in all_images():
        (tmp_path / "data" / name).unlink()
    with pytest.raises(ConcordError, match=r"train\.jsonl:\d images/train_\d\.5_x\.jpg: cannot be read \(No such file"):
        next(rows)


def test_the_order_of_rows_depends_only_on_the_ids(tmp_path: Path) -> None:
    """And not on the order in the shards, so that the first rows of val are a sample of its whole range."""
    ids = [f"{k:03d}" for k in range(40)]
    for name, order in (("one", ids), ("two", ids[::-1])):
        members = [part for id in order for part in sample(f"train/{id}", id.encode(), int(id))]
        pack(tmp_path / name / "all" / "train.tar", members)
        pack(tmp_path / name / "test" / "0.tar", sample("t", b"t", 3))
    changes = {"split": "balanced", "max_per_label": 30}
    task = {"question": "How old?", "bin_width": 10}
    params = write_params(tmp_path / "p.yaml", ingest={**INGEST, "release": RELEASE, **changes}, task=task)
    one, two = ([(split, row.id) for split, row in read_release(tmp_path / n, params)] for n in ("one", "two"))
    assert one == two
    assert one != sorted(one)


def read_with_quarantine(folder: Path, settings: Settings) -> tuple[list[tuple[str, Row]], list[tuple[str, str, str]]]:
    """The rows, and source, line and reason of each quarantined one; targets above 100 are out of range."""
    quarantine = Quarantine(limit=0.7, low=0, high=100)
    rows = list(read_release(folder, settings, quarantine=quarantine))
    quarantine.check_row_counts(len(rows))
    records = csv.DictReader(io.StringIO(quarantine.to_csv()))
    return rows, [(item["source"], item["line"], item["reason"]) for item in records]


def test_bad_annotations_are_quarantined_with_file_and_line(tmp_path: Path) -> None:
    release = write_repository_format(tmp_path / "data")
    images = all_images()
    images["images/train_0.5_x.jpg"] = images["images/train_0.5_x.jpg"][:100]
    del images["images/train_1.5_x.jpg"]
    pack(tmp_path / "data" / "0.tar", images)
    file = tmp_path / "data" / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[6] = lines[6].replace("90", "120")
    file.write_text("\n".join([*lines, "{", '{"image": "images/x.jpg", "problem": "?", "solution": null}']) + "\n")
    rows, quarantined = read_with_quarantine(tmp_path / "data", settings(tmp_path, **release))
    assert quarantined == [
        ("train.jsonl", "1", "image does not decode"),
        ("train.jsonl", "2", "missing file"),
        ("train.jsonl", "7", "target out of range"),
        ("train.jsonl", "8", "not JSON"),
        ("train.jsonl", "9", "no answer"),
    ]
    assert sorted(row.id for _, row in rows) == sorted(
        [f"images/train_{k}.5_x.jpg" for k in (2, 3, 4, 5)] + [f"images/test_{k}.5_x.jpg" for k in (0, 1)]
    )


def test_bad_samples_in_shards_are_quarantined_with_shard_and_number(tmp_path: Path) -> None:
    write_hub_format(tmp_path / "data")
    bad = [*sample("000000", image("train", 9)[:100], 30), *sample("000001", b"", 30), ("000002.json", b"{}")]
    pack(tmp_path / "data" / "agedb" / "train" / "more.tar", bad)
    rows, quarantined = read_with_quarantine(tmp_path / "data", settings(tmp_path, subset="agedb"))
    assert quarantined == [
        ("more.tar", "1", "image does not decode"),
        ("more.tar", "2", "empty file"),
        ("more.tar", "3", "no pair of image and annotation"),
    ]
    assert len(rows) == 9


def test_more_bad_annotations_than_the_limit_are_an_error(tmp_path: Path) -> None:
    write_hub_format(tmp_path / "data")
    pack(tmp_path / "data" / "agedb" / "train" / "more.tar", sample("000000", image("train", 9)[:100], 30))
    message = r"more\.tar: 1 error \(1 of 10 rows, 10\.00%; ingest\.max_quarantined allows 9\.00%\)"
    with pytest.raises(ConcordError, match=message):
        read_release(tmp_path / "data", settings(tmp_path, subset="agedb"), quarantine=Quarantine(0.09, 0, 100))

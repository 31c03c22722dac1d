"""With task.grey_bits, every step reads images of 12 bits in 16-bit files like the same pictures with 8 bits."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from components.commands.dry_run.batch import build_batch
from components.evaluate import judging
from components.evaluate.images import thumbnails
from components.grpo.step import _presentations
from components.ingest.quarantine import Quarantine
from components.ingest.sources.labels import Label, drop_unusable_labels
from components.settings import Reader, Settings
from components.sft.trainer import sft_presentations
from components.shared.model.loading import load
from components.shared.model.number_reader import NumberReader
from components.shared.model.validation_file import read_validation
from components.shared.model.validation_pass import save_validation
from components.shared.rows.rows import SPLITS, Row, ShardWriter, read_rows
from components.shared.scoring.shots import ShotTable
from components.shared.training.presentations import training_rows
from components.shared.training.validation import TaskNumbers, ValidatesDistributions, Validation
from components.validate.tables import row_table, summarise
from tests.support.gray_world import GrayWorld
from tests.support.raw_folder import saved


def rewritten(ingest: Path, folder: Path, deep: bool) -> Path:
    """Shards with the same pictures as 8-bit grey, or as 12 bits in 16."""
    folder.mkdir()
    for split in SPLITS:
        with ShardWriter(folder, split, 1, subjects=True) as shard:
            for batch in read_rows(ingest, split):
                for row in batch.to_pylist():
                    values = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L"))
                    image = Image.fromarray(values.astype(np.uint16) << 4 if deep else values)
                    subject = row["id"]  # keeps the halves of val, which else follow from the files' hashes
                    shard.add(Row(row["id"], saved(image), row["target"], row["question"], row["origin"], subject))
    return folder


@pytest.fixture(scope="module")
def plain(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewritten(gray.ingest, tmp_path_factory.mktemp("plain") / "ingest", deep=False)


@pytest.fixture(scope="module")
def deep(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewritten(gray.ingest, tmp_path_factory.mktemp("deep") / "ingest", deep=True)


def with_bits(settings: Settings, bits: int | None, source: str = "distribution") -> Settings:
    task = settings.task.model_copy(update={"grey_bits": bits})
    answer = settings.answer.model_copy(update={"source": source, "balance": 0.0})
    return settings.model_copy(update={"task": task, "answer": answer})


def shown_by_sft(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    processor = load(gray.sft, settings.model)[1]
    shown = sft_presentations(settings, ingest, folder, 3, processor)
    return [shown[k]["images"][0].tobytes() for k in range(3)]


def shown_by_grpo(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    rows = training_rows(ingest, folder)
    numbers = TaskNumbers.of(load(gray.sft, settings.model)[1], settings.task, rows["target"][:])
    shown = _presentations(settings, rows, numbers)
    return [shown[k]["image"].tobytes() for k in range(3)]


def stored_validation(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    model, processor = load(gray.sft, settings.model)
    save_validation(folder, model, processor, settings.task, ingest, 8)
    distributions = read_validation(folder)[1]
    return [distributions.log_p.tolist(), distributions.warm_start.tolist()]


def figures_during_training(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    """The evaluation of a trainer, without the rest of the trainer."""
    model, processor = load(gray.sft, settings.model)
    numbers = TaskNumbers.of(processor, settings.task, [20.0, 40.0, 60.0])
    trainer = SimpleNamespace(
        _validation=Validation(ingest, numbers, 8, 4, text=settings.task),
        accelerator=Accelerator(cpu=True),
        model=model,
        processing_class=processor,
        log=lambda figures: None,
        callback_handler=SimpleNamespace(on_evaluate=lambda *args: None),
        args=None,
        state=None,
        control=None,
    )
    return ValidatesDistributions.evaluate(trainer)  # type: ignore[arg-type]


def evaluated(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    found = judging.read_test(
        settings, "grpo", *load(gray.grpo, settings.model), judging.TestSet.read(ingest, ShotTable.of([20.0], 1, 1))
    )
    return [found.texts, found.log_p.tolist()]


def read_by(source: str) -> Callable[..., Any]:
    def read(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
        """As a registered model does: by the stored reader and the model folder."""
        stored = with_bits(settings, settings.task.grey_bits, source).reader().model_dump_json(by_alias=True)
        reader = NumberReader.load(gray.grpo, Reader.model_validate_json(stored))
        return [readings.value.tolist() for _, readings in reader.read(read_rows(ingest, "test"), 5)]

    return read


def reported(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    shown = thumbnails(ingest, ["test-000", "test-010"], settings.task.grey_bits)
    return {id: image.tobytes() for id, image in shown.items()}


def planned(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    processor = load(gray.sft, settings.model)[1]
    return build_batch(settings, processor, ingest, 2, 1, None).fields["pixel_values"].tolist()


def validated(settings: Settings, ingest: Path, gray: GrayWorld, folder: Path) -> Any:
    return row_table(ingest, settings.task)[["content", "hash", "fault"]].to_dict("list")


READERS = {
    "sft": shown_by_sft,
    "grpo": shown_by_grpo,
    "validation file": stored_validation,
    "validation during training": figures_during_training,
    "evaluate": evaluated,
    "report": reported,
    "registered, distribution": read_by("distribution"),
    "registered, text": read_by("text"),
    "dry run": planned,
    "validate": validated,
}


@pytest.mark.parametrize("name", READERS)
def test_12_bits_are_read_like_8(name: str, gray: GrayWorld, plain: Path, deep: Path, tmp_path: Path) -> None:
    """Also that the pictures are others without the setting, so that the test can fail."""
    found = []
    for number, (ingest, bits) in enumerate([(plain, None), (plain, 12), (deep, 12), (deep, None)]):
        (folder := tmp_path / str(number)).mkdir()
        found.append(READERS[name](with_bits(gray.settings, bits), ingest, gray, folder))
    expected, unchanged, right, dark = found
    assert unchanged == expected
    assert right == expected
    assert dark != expected


def test_validate_sees_the_range_that_the_setting_gives(gray: GrayWorld, deep: Path) -> None:
    for bits, low, high in ((None, 0.0, 0.07), (12, 0.75, 1.0), (8, 0.0, 0.0)):
        task = with_bits(gray.settings, bits).task
        rows = row_table(deep, task)
        if bits == 8:
            assert rows["fault"].str.contains(r"more bits than task.grey_bits \(8\)").all()
        else:
            assert low < summarise(rows, task, 8).figures["image_range"] <= high


def test_a_quarantine_takes_images_with_more_bits() -> None:
    values = {"fits": 4095, "does not": 4096}
    labels = [Label(id, id, 1.0, "train", 2) for id in values]
    bad: list[tuple[str, str]] = []
    kept = drop_unusable_labels(
        labels,
        Quarantine(0.5, grey_bits=12),
        lambda label: saved(Image.fromarray(np.full((4, 4), values[label.id], np.uint16))),
        lambda label, error: bad.append((label.id, error.remedy)),
    )
    assert [label.id for label in kept] == ["fits"]
    assert bad[0][0] == "does not"
    assert "task.grey_bits (12)" in bad[0][1]


def test_readers_from_before_the_setting_still_load(gray: GrayWorld) -> None:
    stored = json.loads(gray.settings.reader(0.0).model_dump_json(by_alias=True))
    del stored["task"]["grey_bits"]
    assert Reader.model_validate_json(json.dumps(stored)).task.grey_bits is None

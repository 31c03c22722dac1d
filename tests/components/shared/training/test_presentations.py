"""The schedule of presentations: random access, every image once per epoch, copies that are one object."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from components.errors import ConcordError
from components.settings import Augment
from components.shared.rows.rows import Row, ShardWriter
from components.shared.training.presentations import presentations, training_rows
from tests.support.raw_folder import encoded

N = 11
CHANGES = Augment(rotate=5, shift=0.05, zoom=0.05, light=0.2, noise=0.02)
NO_CHANGES = Augment(rotate=0, shift=0, zoom=0, light=0, noise=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("rows")
    with ShardWriter(folder, "train", 1) as writer:
        for k in range(N):
            writer.add(Row(f"row-{k}", encoded(k, size=16), float(k), "How much?", f"table.csv:{k}"))
    return training_rows(folder, folder / "cache")


def schedule(rows: Dataset, count: int = 3 * N, seed: int = 0, changes: Augment = CHANGES) -> Dataset:
    def example(row: dict[str, Any], picture: Image.Image) -> dict[str, Any]:
        return {"id": row["id"], "target": row["target"], "picture": picture}

    return presentations(rows, count, seed, changes, example)


def test_rows_come_from_the_shards_and_stay_encoded(rows: Dataset) -> None:
    assert rows["id"][:] == [f"row-{k}" for k in range(N)]
    assert rows[0]["image"]["bytes"][:4] == b"\x89PNG"


def test_a_presentation_does_not_depend_on_the_order_of_access(rows: Dataset) -> None:
    shown = schedule(rows)
    in_order = [shown[k] for k in range(len(shown))]
    fetched = schedule(rows)[list(range(len(shown)))]
    reverse = schedule(rows)
    for k in reversed(range(len(shown))):
        single = reverse[k]
        assert in_order[k]["id"] == fetched["id"][k] == single["id"]
        assert in_order[k]["target"] == single["target"] == float(single["id"].removeprefix("row-"))
        assert in_order[k]["picture"].tobytes() == fetched["picture"][k].tobytes() == single["picture"].tobytes()


def test_a_broken_image_is_named_with_a_remedy(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 1) as writer:
        writer.add(Row("row-0", encoded(0, size=16), 0.0, "How much?", "table.csv:0"))
        writer.add(Row("row-1", b"no image", 1.0, "How much?", "table.csv:1"))
    shown = schedule(training_rows(tmp_path, tmp_path / "cache"), 2)
    with pytest.raises(ConcordError, match=r"^image row-1: not an image.*Remove its row.*run ingest again"):
        [shown[k] for k in range(2)]


def test_a_longer_schedule_starts_like_a_shorter_one(rows: Dataset) -> None:
    assert schedule(rows, 3 * N)[list(range(5))]["id"] == schedule(rows, 1000 * N)[list(range(5))]["id"]


def test_each_epoch_shows_every_image_once_in_another_order(rows: Dataset) -> None:
    shown = schedule(rows)[:]["id"]
    epochs = [shown[start : start + N] for start in range(0, 3 * N, N)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(rows["id"][:])
    assert len({tuple(epoch) for epoch in [*epochs, rows["id"][:]]}) == 4


def test_the_seed_decides_order_and_augmentation(rows: Dataset) -> None:
    first, second, other = (schedule(rows, seed=seed)[list(range(N))] for seed in (5, 5, 6))
    assert first["id"] == second["id"] != other["id"]
    pictures = [[p.tobytes() for p in batch["picture"]] for batch in (first, second)]
    assert pictures[0] == pictures[1]


def test_copies_in_one_fetch_are_one_object(rows: Dataset) -> None:
    """GRPO relies on it to encode each picture once, whatever the number of completions."""
    shown = schedule(rows)
    fetched = shown.__getitems__([4, 4, 4, 2, 2, 4])  # as a data loader fetches
    objects = [id(row["picture"]) for row in fetched]
    assert objects[0] == objects[1] == objects[2] == objects[5]
    assert objects[3] == objects[4]
    assert len(set(objects)) == 2
    assert [row["id"] for row in fetched] == [shown[k]["id"] for k in (4, 4, 4, 2, 2, 4)]


def test_two_presentations_of_an_image_are_augmented_independently(rows: Dataset) -> None:
    """A row in two epochs gives two pictures."""
    shown = schedule(rows)
    ids = shown[:]["id"]
    first, second = (k for k, id in enumerate(ids) if id == "row-0" and k < 2 * N)
    fetched = shown.__getitems__([first, second])
    assert fetched[0]["id"] == fetched[1]["id"] == "row-0"
    assert fetched[0]["picture"].tobytes() != fetched[1]["picture"].tobytes()


def test_without_augmentation_the_picture_equals_the_image(rows: Dataset) -> None:
    shown = schedule(rows, changes=NO_CHANGES)[0]
    original = encoded(int(shown["id"].removeprefix("row-")), size=16)
    assert shown["picture"].tobytes() == Image.open(io.BytesIO(original)).tobytes()


def test_the_schedule_has_the_requested_length(rows: Dataset) -> None:
    shown = schedule(rows, count=7)
    assert len(shown) == 7
    with pytest.raises(IndexError):
        shown[7]


def test_neighbouring_seeds_and_presentations_have_different_augmentation(rows: Dataset) -> None:
    """(seed 0, k 1) and (seed 1, k 0) would have the same generator if seed and k were added."""
    plain = rows.select([0])
    pictures = {
        np.asarray(schedule(plain, count=8, seed=seed)[k]["picture"]).tobytes() for seed in range(4) for k in range(8)
    }
    assert len(pictures) == 32

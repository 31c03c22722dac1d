"""The schedule of presentations: seekable, every image once an epoch, copies that are one object."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from components.settings import Augment
from components.shared.rows.rows import Row, ShardWriter
from components.shared.training.presentations import presentations, training_rows
from tests.support.raw_folder import encoded

N = 11
CHANGES = Augment(rotate=5, shift=0.05, zoom=0.05, light=0.2, noise=0.02)
NONE = Augment(rotate=0, shift=0, zoom=0, light=0, noise=0)


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


def test_rows_are_those_of_the_shards_and_stay_encoded(rows: Dataset) -> None:
    assert rows["id"][:] == [f"row-{k}" for k in range(N)]
    assert rows[0]["image"]["bytes"][:4] == b"\x89PNG"


def test_a_presentation_is_the_same_however_it_is_reached(rows: Dataset) -> None:
    shown = schedule(rows)
    straight = [shown[k] for k in range(len(shown))]
    fetched = schedule(rows)[list(range(len(shown)))]
    last_first = schedule(rows)
    for k in reversed(range(len(shown))):
        alone = last_first[k]
        assert straight[k]["id"] == fetched["id"][k] == alone["id"]
        assert straight[k]["target"] == alone["target"] == float(alone["id"].removeprefix("row-"))
        assert straight[k]["picture"].tobytes() == fetched["picture"][k].tobytes() == alone["picture"].tobytes()


def test_a_longer_schedule_begins_like_a_shorter_one(rows: Dataset) -> None:
    assert schedule(rows, 3 * N)[list(range(5))]["id"] == schedule(rows, 1000 * N)[list(range(5))]["id"]


def test_every_image_once_an_epoch_in_an_order_of_its_own(rows: Dataset) -> None:
    shown = schedule(rows)[:]["id"]
    epochs = [shown[start : start + N] for start in range(0, 3 * N, N)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(rows["id"][:])
    assert len({tuple(epoch) for epoch in [*epochs, rows["id"][:]]}) == 4


def test_the_seed_decides_order_and_changes(rows: Dataset) -> None:
    one, again, other = (schedule(rows, seed=seed)[list(range(N))] for seed in (5, 5, 6))
    assert one["id"] == again["id"] != other["id"]
    pictures = [[p.tobytes() for p in found["picture"]] for found in (one, again)]
    assert pictures[0] == pictures[1]


def test_copies_in_one_fetch_are_one_object(rows: Dataset) -> None:
    """What GRPO goes by: it encodes each picture once, whatever the number of completions."""
    shown = schedule(rows)
    fetched = shown.__getitems__([4, 4, 4, 2, 2, 4])  # as a data loader fetches
    kinds = [id(row["picture"]) for row in fetched]
    assert kinds[0] == kinds[1] == kinds[2] == kinds[5]
    assert kinds[3] == kinds[4]
    assert len(set(kinds)) == 2
    assert [row["id"] for row in fetched] == [shown[k]["id"] for k in (4, 4, 4, 2, 2, 4)]


def test_one_image_twice_in_a_fetch_is_changed_twice(rows: Dataset) -> None:
    """Two presentations of a row, in two epochs, are two pictures."""
    shown = schedule(rows)
    ids = shown[:]["id"]
    first, second = (k for k, id in enumerate(ids) if id == "row-0" and k < 2 * N)
    fetched = shown.__getitems__([first, second])
    assert fetched[0]["id"] == fetched[1]["id"] == "row-0"
    assert fetched[0]["picture"].tobytes() != fetched[1]["picture"].tobytes()


def test_without_changes_the_picture_is_the_image(rows: Dataset) -> None:
    shown = schedule(rows, changes=NONE)[0]
    original = encoded(int(shown["id"].removeprefix("row-")), size=16)
    assert shown["picture"].tobytes() == Image.open(io.BytesIO(original)).tobytes()


def test_it_ends_where_it_was_asked_to(rows: Dataset) -> None:
    shown = schedule(rows, count=7)
    assert len(shown) == 7
    with pytest.raises(IndexError):
        shown[7]


def test_neighbouring_seeds_and_presentations_share_no_changes(rows: Dataset) -> None:
    """(seed 0, k 1) and (seed 1, k 0) would be the same generator if the two were added up."""
    plain = rows.select([0])
    pictures = {
        np.asarray(schedule(plain, count=8, seed=seed)[k]["picture"]).tobytes() for seed in range(4) for k in range(8)
    }
    assert len(pictures) == 32

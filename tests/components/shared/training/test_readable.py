"""Images that cannot be read are found before training, those that only the model's processor refuses too."""

import io
from pathlib import Path

import pytest
from PIL import Image

from components.commands.bench.gpu_model import build_stand_in
from components.errors import ConcordError
from components.shared.rows.rows import Row, ShardWriter
from components.shared.training.readable import check_readable


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "gray").save(out, "PNG")
    return out.getvalue()


def test_images_that_the_processor_refuses_are_named_with_the_broken_ones(tmp_path: Path) -> None:
    images = {"train": [png(60, 60), png(900, 4), png(60, 60)], "val": [png(60, 60), b"", png(900, 4)]}
    (tmp_path / "rows").mkdir()
    for split, contents in images.items():
        with ShardWriter(tmp_path / "rows", split, 1) as writer:
            for number, image in enumerate(contents):
                writer.add(Row(f"{split}-{number}", image, 1.0, "How old?", f"table.csv:{number}"))
    with pytest.raises(ConcordError, match="3 images of train and val cannot be read") as error:
        check_readable(build_stand_in("How old?"), tmp_path / "rows")
    lines = str(error.value).splitlines()[1:-1]
    assert [line.split(":")[0] for line in lines] == ["  train image train-1", "  val image val-1", "  val image val-2"]
    assert "refused by the model's processor" in lines[0]
    assert "empty (0 bytes)" in lines[1]

"""The data benchmark: its images, its measurements, its tables, and the whole command on a few hundred rows."""

import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.commands.bench.command import main
from components.commands.bench.data_measure import run_measured
from components.commands.bench.data_table import write_data_tables
from components.commands.bench.pictures import MIN_ROWS, draw, picture_path, raw_folder, readings
from components.errors import ConcordError
from components.validate.image_probe import probe_image
from components.validate.perceptual_hash import perceptual_hashes
from tests.support.raw_folder import ROOT


@pytest.mark.parametrize("rows", [400, 1234, 200_000])
def test_labels_are_long_tailed_and_fill_every_shot_group(rows: int) -> None:
    counts = Counter(readings(rows))
    assert sum(counts.values()) == rows
    assert max(counts) == 100
    common = [counts[label] for label in range(0, 65, 5)]
    assert common == sorted(common, reverse=True)
    assert sum(common) == rows - 120
    in_train = {label: count - 2 * min(count // 3, 30) for label, count in counts.items()}
    assert in_train[100] == 2
    assert in_train[80] == 8
    assert in_train[0] > 12


def test_smaller_folder_links_the_same_pictures_and_all_are_different(tmp_path: Path) -> None:
    large = raw_folder(tmp_path, MIN_ROWS + 50)
    small = raw_folder(tmp_path, MIN_ROWS)
    assert (small / picture_path(7)).samefile(large / picture_path(7))
    assert len(list(small.rglob("*.jpg"))) == MIN_ROWS
    assert len((small / "labels.csv").read_text(encoding="utf-8").splitlines()) == MIN_ROWS + 1
    assert (small / picture_path(7)).read_bytes() == draw(7)
    with Image.open(io.BytesIO(draw(7))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
        image.load()
    probes = [probe_image(path.read_bytes()) for path in large.rglob("*.jpg")]
    assert len({one.content for one in probes}) == MIN_ROWS + 50
    hashes = np.array([int.from_bytes(h or b"") for h in perceptual_hashes([one.thumbnail or b"" for one in probes])])
    assert min(int(a ^ b).bit_count() for k, a in enumerate(hashes) for b in hashes[:k]) > 20
    made = (large / "made.json").stat().st_mtime_ns
    assert raw_folder(tmp_path, MIN_ROWS + 50) == large
    assert (large / "made.json").stat().st_mtime_ns == made
    with pytest.raises(ConcordError, match="399 rows are too few"):
        raw_folder(tmp_path, 399)


def test_memory_includes_child_processes() -> None:
    child = "x = b'1' * 150_000_000; import time; time.sleep(1.2)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    run = run_measured([sys.executable, "-c", code], {})
    assert 150e6 < run.memory < 300e6
    assert run.seconds > 1.2
    assert 0 < run.cpu < run.seconds


def test_failed_command_is_reported_with_its_output() -> None:
    with pytest.raises(ConcordError, match=r"failed with exit code 3:\nno picture here"):
        run_measured([sys.executable, "-c", "import sys; print('no picture here'); sys.exit(3)"], {})


def size(rows: int, ours: float, bare: float, memory: float) -> dict[str, Any]:
    def side(seconds: float, parts: dict[str, float]) -> dict[str, Any]:
        spread = {"median": seconds, "least": 0.5 * seconds, "most": 2 * seconds}
        return {"seconds": spread, "parts": parts, "memory": memory}

    steps = {"ingest": 0.25 * ours, "validate": 0.75 * ours}
    sides = {"ours": side(ours, steps), "bare": side(bare, {"loop": bare})}
    return {"rows": rows, "bytes": 13_000 * rows, "ratios": [bare / ours, bare / ours, 2.0], **sides}


def test_table_has_speeds_ratios_and_the_cost_of_further_rows(tmp_path: Path) -> None:
    write_data_tables(tmp_path / "b", [size(10_000, 16.0, 8.0, 300e6), size(50_000, 32.0, 40.0, 340e6)])
    text = (tmp_path / "b.md").read_text(encoding="utf-8")
    assert "quality 90, 13 KB each" in text
    assert (
        "| 50,000 | 8.0 s | 24.0 s | 1,562 rows/s (781 to 3,125) | 1,250 rows/s (625 to 2,500) "
        "| 1.25 (1.25 to 2.00) | 340 MB | 340 MB |" in text
    )
    assert "| 10,000 | 50,000 | 400 µs | 800 µs | 2.00 | 1,000 bytes |" in text
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["sizes"][1]["rows"] == 50_000


@pytest.mark.e2e
def test_command_times_the_real_steps(tmp_path: Path) -> None:
    out, folder = tmp_path / "results" / "bench-data", tmp_path / "pictures"
    options = ["--rows", "400", "--rounds", "1", "--folder", str(folder), "--out", str(out)]
    main(["data", "--params", str(ROOT / "params.yaml"), *options])
    (result,) = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["sizes"]
    (round,) = result["ours"]["rounds"]
    assert set(round) == {"ingest", "validate"}
    assert all(run["seconds"] > 1 and run["memory"] > 50e6 for run in round.values())
    assert result["ratios"] == [
        pytest.approx(result["bare"]["seconds"]["median"] / result["ours"]["seconds"]["median"])
    ]
    assert "| 400 |" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["400", "mlflow.db"]

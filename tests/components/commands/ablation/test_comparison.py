"""Comparison and tables of the ablation, on hand-written answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.commands.ablation.comparison import compare, predict_split
from components.commands.ablation.studies import claim
from components.commands.ablation.table import markdown, write_tables
from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.loading import base_model, save
from components.shared.reporting.predictions import write_predictions
from components.shared.rows.rows import Row, ShardWriter
from tests.support.gauge_world import write_params
from tests.support.raw_folder import encoded

# Readings of train; with many 3 and few 2: 10 is many-shot, 20 medium, 30 few.
TRAIN = [10, 10, 10, 10, 10, 20, 20, 30]
TEST = [10, 10, 20, 30]
SHOT = {10: "many", 20: "medium", 30: "few"}
# Answers (None: unparseable), with their absolute errors computed by hand. The worst possible answer to 30 is 100.
ANSWERS: dict[str, list[float | None]] = {
    "warm": [12, 8, 20, 20],  # 2 2 0 10: mean 3.5
    "ccc-0": [11, 9, 21, 27],  # 1 1 1 3: 1.5
    "ccc-1": [10, 10, 20, None],  # 0 0 0 70: 17.5
    "mae-0": [10, 10, 20, 20],  # 0 0 0 10: 2.5
    "mae-1": [10, 10, 20, 10],  # 0 0 0 20: 5
    "sft-0": [14, 10, 20, 30],  # 4 0 0 0: 1
    "sft-1": [10, 10, 24, 30],  # 0 0 4 0: 1
}
STEPS = {name: 400 if name.startswith("sft") else 200 for name in ANSWERS}
SECONDS = {name: 100.0 + index for index, name in enumerate(sorted(set(ANSWERS) - {"warm"}))}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    changes = {"task": {"many": 3, "few": 2}, "evaluate": {"bootstrap": 50}}
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml", **changes)


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingest")
    for split, readings in (("train", TRAIN), ("test", TEST)):
        with ShardWriter(folder, split, 1) as writer:
            for k, reading in enumerate(readings):
                name = f"{split}-{k}"
                writer.add(Row(name, encoded(100 * len(readings) + k, size=32), reading, "What?", f"t.csv:{k}"))
    return folder


def write_answers(folder: Path, answers: dict[str, list[float | None]], shot: dict[int, str] = SHOT) -> dict[str, Path]:
    files = {}
    for name, values in answers.items():
        files[name] = folder / f"{name}.parquet"
        ids, texts = [f"test-{k}" for k in range(len(values))], ["" for _ in values]
        shots = [shot[target] for target in TEST]
        parsed = np.array([np.nan if value is None else value for value in values])
        write_predictions(files[name], ids, np.array(TEST, float), shots, texts, parsed)
    return files


@pytest.fixture(scope="module")
def result(settings: Settings, ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    files = write_answers(tmp_path_factory.mktemp("answers"), ANSWERS)
    return compare(settings, claim(settings), ingest, "test", files, [0, 1]) | {"steps": STEPS, "seconds": SECONDS}


def test_metrics_of_each_model_by_shot_group(result: dict[str, Any]) -> None:
    def mae(name: str) -> list[float]:
        groups = result["models"][name]["groups"]
        return [groups[group]["mae"] for group in ("all", "many", "medium", "few")]

    assert mae("warm") == [3.5, 2, 0, 10]
    assert mae("ccc-0") == [1.5, 1, 1, 3]
    assert mae("ccc-1") == [17.5, 0, 0, 70]
    assert mae("mae-1") == [5, 0, 0, 20]
    assert result["models"]["ccc-1"]["unparseable"] == 0.25
    # Errors of 0 count as half a step: (2 * 2 * 0.5 * 10) ** (1 / 4).
    assert result["models"]["warm"]["groups"]["all"]["gm"] == pytest.approx(20**0.25)
    assert (result["split"], result["seeds"]) == ("test", [0, 1])


def test_differences_are_paired_by_seed_and_image(result: dict[str, Any]) -> None:
    paired = result["paired"]
    assert set(paired) == {"ccc - warm", "ccc - mae", "ccc - sft", "mae - warm", "sft - warm"}
    expected = {
        # mean over seeds of the difference of the means: all, many, medium, few
        "ccc - warm": [(-2 + 14) / 2, (-1 - 2) / 2, (1 + 0) / 2, (-7 + 60) / 2],
        "ccc - mae": [(-1 + 12.5) / 2, (1 + 0) / 2, (1 + 0) / 2, (-7 + 50) / 2],
        "sft - warm": [-2.5, (0 - 2) / 2, (0 + 4) / 2, -10],
    }
    for pair, differences in expected.items():
        for group, difference in zip(("all", "many", "medium", "few"), differences, strict=True):
            assert paired[pair][group]["difference"] == pytest.approx(difference), f"{pair}, {group}"
    few = paired["ccc - warm"]["few"]
    assert few["per_seed"] == [-7, 60]
    assert few["ci"] == [-7, 60], "one image: the interval spans the seeds"
    assert paired["sft - warm"]["few"]["ci"] == [-10, -10]


def test_tables_have_the_metrics_differences_and_losses(
    result: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    write_tables(tmp_path / "results" / "ablation", settings, claim(settings), result)
    lines = (tmp_path / "results" / "ablation.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Ablation: gauges"
    assert "seeds 0, 1; test split of 4 images (many 2, medium 1, few 1). MAE in %" in lines[2]
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    warm = rows["warm start"].split(" | ")
    assert warm[1:5] == ["3.50", "2.00", "0.00", "10.00"]
    assert warm[5] == "2.11"
    ccc = rows["CCC-GRPO"].split(" | ")
    assert ccc[1:5] == ["9.50 (1.50 17.50)", "0.50 (1.00 0.00)", "0.50 (1.00 0.00)", "36.50 (3.00 70.00)"]
    assert ccc[7:9] == ["0.1250 (0.0000 0.2500)", "200"]
    assert ccc[9] == "100 |"  # the mean of 100 and 101; a half is rounded to even
    assert rows["SFT continued"].split(" | ")[8] == "400"
    assert rows["CCC-GRPO − warm start"].split(" | ")[4] == "+26.50 [-7.00, +60.00] |"
    assert rows["SFT continued − warm start"].split(" | ")[4] == "-10.00 [-10.00, -10.00] |"
    # The groups in which it is worse are listed.
    (losses,) = [line for line in lines if line.startswith("Where CCC-GRPO is worse: ")]
    assert "CCC-GRPO − warm start on all (+6.00)" in losses
    assert "CCC-GRPO − warm start on many" not in losses
    assert json.loads((tmp_path / "results" / "ablation.json").read_text(encoding="utf-8"))["seeds"] == [0, 1]


def test_table_says_so_when_nothing_is_worse(settings: Settings, ingest: Path, tmp_path: Path) -> None:
    best: dict[str, list[float | None]] = ANSWERS | {"ccc-0": [10, 10, 20, 30], "ccc-1": [10, 10, 20, 30]}
    result = compare(settings, claim(settings), ingest, "test", write_answers(tmp_path, best), [0, 1])
    result |= {"steps": STEPS, "seconds": SECONDS}
    write_tables(tmp_path / "ablation", settings, claim(settings), result)
    assert "CCC-GRPO is not worse in any comparison above." in (tmp_path / "ablation.md").read_text(encoding="utf-8")


def test_empty_shot_group_is_marked_empty(settings: Settings, ingest: Path, tmp_path: Path) -> None:
    """With these settings no label is few-shot."""
    task = settings.task.model_copy(update={"many": 1, "few": 1})
    changed = settings.model_copy(update={"task": task})
    answers = write_answers(tmp_path, ANSWERS, {10: "many", 20: "many", 30: "medium"})
    result = compare(changed, claim(changed), ingest, "test", answers, [0, 1])
    result |= {"steps": STEPS, "seconds": SECONDS}
    write_tables(tmp_path / "ablation", changed, claim(changed), result)
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "few 0)" in text
    warm = next(line for line in text.splitlines() if line.startswith("| warm start | "))
    assert warm.split(" | ")[4] == "empty"


def test_answers_to_other_images_are_rejected(settings: Settings, ingest: Path, tmp_path: Path) -> None:
    files = write_answers(tmp_path, ANSWERS)
    pq.write_table(pq.read_table(files["mae-1"]).slice(1), files["mae-1"])
    with pytest.raises(ConcordError, match=r"mae-1\.parquet: its answers are for other images than this test split"):
        compare(settings, claim(settings), ingest, "test", files, [0, 1])


def test_existing_predictions_are_not_computed_again(settings: Settings, ingest: Path, tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    save(*base_model(settings, ingest), tmp_path / "model")
    path = tmp_path / "answers.parquet"
    predict_split((settings, ingest, "test", tmp_path / "model", path, threads))
    table = pq.read_table(path)
    assert table["id"].to_pylist() == [f"test-{k}" for k in range(4)]
    assert table["value"].type == pa.float64()
    assert table["value"].null_count == 4  # an untrained model writes no valid answer
    assert not list(tmp_path.glob("*.partial"))
    path.write_bytes(b"kept")
    predict_split((settings, ingest, "test", tmp_path / "model", path, threads))
    assert path.read_bytes() == b"kept"


def test_markdown_names_machine_and_versions(result: dict[str, Any], settings: Settings) -> None:
    facts = {"date": "2026-01-02", "machine": "m", "python": "3.11.0", "versions": {"torch": "9"}}
    text = markdown(settings, claim(settings), result | {"machine": facts})
    assert text.rstrip().endswith("2026-01-02; m; Python 3.11.0, torch 9.")

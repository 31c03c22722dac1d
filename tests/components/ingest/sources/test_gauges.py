"""Gauges: the seed determines every pixel, the needle shows the reading, and errors in the table name their line."""

import io
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.errors import ConcordError
from components.ingest.sources import gauges
from components.ingest.sources.gauges import (
    FLUTTER,
    PIN,
    Scene,
    draw_scenes,
    label_counts,
    read_gauges,
    read_scenes,
    render,
    write_scenes,
)
from components.settings import load_settings

ROOT = Path(__file__).parents[4]
COUNTS = label_counts(head=4, operating_point=35, decay=10.0, floor=1)
SCENES = draw_scenes(7, COUNTS, val=1, test=2)


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    """Grey levels in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(render(scene, size))).convert("L"), np.float64) / 255


def clear(scene: Scene, reading: int) -> Scene:
    """The same gauge with a needle of the highest contrast, and nothing that hides it."""
    needle = 1.0 if scene.ink > scene.face else 0.0
    sharp = replace(scene, reading=reading, caught=0.0, smear=0.0, glare=0.0, light=0.0, blur=0.2, noise=0.0)
    return replace(sharp, needle=needle, red=0.0, ink=scene.face, tail=0.0)


def test_label_counts_by_hand() -> None:
    # 10, 10/e = 3.7, 10/e^2 = 1.4 (below the floor of 2), then the floor.
    assert label_counts(head=10, operating_point=2, decay=1.0, floor=2).tolist() == [2, 4, 10, 4] + [2] * 97
    assert label_counts(head=3, operating_point=100, decay=5.0, floor=1).argmax() == 100


def test_the_seed_determines_the_table() -> None:
    text = write_scenes(SCENES)
    assert write_scenes(draw_scenes(7, COUNTS, val=1, test=2)) == text
    other = write_scenes(draw_scenes(8, COUNTS, val=1, test=2))
    assert other != text
    assert len(other.splitlines()) == len(text.splitlines()) == 1 + COUNTS.sum() + 101 + 202


def test_train_is_long_tailed_and_val_and_test_are_balanced() -> None:
    counts = Counter((scene.split, scene.reading) for scene in SCENES)
    for reading, count in enumerate(COUNTS):
        assert [counts[split, reading] for split in ("train", "val", "test")] == [count, 1, 2]
    assert COUNTS.max() == COUNTS[35] == 4
    assert len({scene.id for scene in SCENES}) == len(SCENES)
    order = [scene.reading for scene in SCENES if scene.split == "val"]
    assert order != sorted(order)  # so that the first rows of a split are a sample of it


def test_a_scene_determines_its_pixels() -> None:
    scene = SCENES[0]
    image = render(scene, 48)
    assert render(scene, 48) == image
    assert Image.open(io.BytesIO(image)).size == (48, 48)
    assert Image.open(io.BytesIO(image)).mode == "RGB"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("reading", 30), ("caught", 10.0), ("smear", 4.0),
        ("face", 0.3), ("needle", 0.4), ("red", 0.8), ("rim", 0.3), ("tint", 0.1), ("start", -40.0),
        ("sweep", -60.0), ("turn", 20.0), ("radius", -0.1), ("x", 0.05), ("y", 0.05), ("majors", 3), ("minors", 3),
        ("width", 0.02), ("tail", 0.1), ("light", 0.5), ("light_angle", 90.0), ("glare", 0.5),
        ("glare_offset", 60.0), ("glare_width", 40.0), ("blur", 1.0), ("noise", 0.1), ("noise_seed", 1),
    ],
)  # fmt: skip
def test_every_field_changes_the_image(field: str, change: float) -> None:
    # Light and glare are on, so that their fields have an effect; noise is off except where it is tested.
    scene = replace(
        clear(SCENES[0], 20), ink=0.4, glare=0.4, light=0.2, noise=0.02 if field == "noise_seed" else 0.0, tail=0.02
    )
    changed = replace(scene, **{field: getattr(scene, field) + change})
    before, after = (np.asarray(Image.open(io.BytesIO(render(s, 64))), np.float64) for s in (scene, changed))
    assert np.abs(before - after).max() > 10


def test_other_seeds_give_other_images_of_the_same_reading() -> None:
    scenes = [next(s for s in draw_scenes(seed, COUNTS, 1, 1) if s.reading == 35) for seed in range(5)]
    assert len({render(scene, 32) for scene in scenes}) == 5


def measured_reading(scene: Scene, image: np.ndarray) -> float:
    """The reading measured from the pixels: the mean direction of the pixels that differ from the face."""
    size = len(image)
    grid = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(grid - scene.x, grid - scene.y)
    radius = np.hypot(x, y) / scene.radius
    weight = np.where((radius > 0.2) & (radius < 0.7), np.abs(image - scene.face), 0)
    weight = np.where(weight > 0.1, weight, 0)
    clockwise_from_top = np.degrees(np.arctan2((weight * x / radius).sum(), -(weight * y / radius).sum()))
    return (clockwise_from_top - scene.turn - scene.start) % 360 / scene.sweep * 100


def test_the_needle_points_at_the_reading() -> None:
    """Within one percent of the scale, for readings over the whole scale and gauges of every style."""
    styles = SCENES[:303:13]
    assert {scene.face > 0.5 for scene in styles} == {True, False}
    for reading, scene in zip(np.linspace(0, 100, len(styles)).round().astype(int), styles, strict=True):
        gauge = clear(scene, int(reading))
        measured = measured_reading(gauge, pixels(gauge))
        measured = min((measured, measured - 360 / gauge.sweep * 100), key=lambda value: abs(value - reading))
        assert measured == pytest.approx(reading, abs=1.0), f"{gauge}"


def test_some_images_are_hard_to_read_independent_of_the_reading() -> None:
    scenes = draw_scenes(3, np.full(101, 20), val=1, test=1)
    contrast = np.array([abs(s.needle - s.face) / abs(s.ink - s.face) for s in scenes])
    glare = np.array([s.glare for s in scenes])
    hard = (contrast < 0.4) | (glare > 0.7)
    assert 0.1 < hard.mean() < 0.6
    readings = np.array([s.reading for s in scenes])
    assert abs(np.corrcoef(hard, readings)[0, 1]) < 0.08  # nearly four standard errors


def test_the_needle_flutters_around_the_reading_in_proportion_to_its_smear() -> None:
    scenes = [s for s in draw_scenes(3, np.full(101, 20), val=1, test=1) if 48 <= s.reading <= 52]
    caught, smear = np.array([s.caught for s in scenes]), np.array([s.smear for s in scenes])
    flutter = smear / 0.2
    assert FLUTTER[0] <= flutter.min() < flutter.max() <= FLUTTER[1]
    scaled = caught / flutter  # standard normal; the pins are at least three standard deviations away
    assert abs(scaled.mean()) < 4 / np.sqrt(len(scaled))
    assert scaled.std() == pytest.approx(1, abs=0.2)


def test_the_pins_stop_the_needle() -> None:
    scenes = draw_scenes(3, np.full(101, 20), val=1, test=1)
    shown = np.array([s.reading + s.caught for s in scenes])
    assert shown.min() == pytest.approx(-PIN)
    assert shown.max() == pytest.approx(100 + PIN)


def test_the_image_shows_the_reading_plus_the_deviation() -> None:
    scene = clear(SCENES[0], 40)
    assert render(replace(scene, caught=7.0), 64) == render(replace(scene, reading=47), 64)


def test_glare_hides_the_needle() -> None:
    """With full glare on the needle, two readings three percent apart look alike; without glare they do not."""
    scene = replace(clear(SCENES[0], 50), noise=0.0)
    apart = np.abs(pixels(scene) - pixels(replace(scene, reading=53))).max()
    bright = replace(scene, glare=1.0, glare_offset=0.0, glare_width=40.0)
    hidden = np.abs(pixels(bright) - pixels(replace(bright, reading=53)))
    size = len(hidden)
    y, x = np.mgrid[:size, :size] / size
    outer = np.hypot(x - scene.x, y - scene.y) > 0.5 * scene.radius
    assert hidden[outer].max() < 0.4 * apart


# The table as a file.


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.csv"
    path.write_text(write_scenes(SCENES[:5]), encoding="utf-8")
    return path


def test_a_written_table_is_read_back(table: Path) -> None:
    assert list(read_scenes(table)) == [(line, scene) for line, scene in enumerate(SCENES[:5], start=2)]


def test_many_scenes_are_rendered_by_several_processes_in_the_order_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenes.csv").write_text(write_scenes(SCENES[:50]), encoding="utf-8")
    settings = load_settings(ROOT / "params.yaml")
    in_one_process = list(read_gauges(tmp_path, settings))
    assert multiprocessing.active_children() == []
    monkeypatch.setattr(gauges, "WINDOW", 16)
    in_several, children = [], set()
    for row in read_gauges(tmp_path, settings):
        in_several.append(row)
        children |= {child.pid for child in multiprocessing.active_children()}
    assert in_several == in_one_process
    assert children, "the table should have filled a window"
    assert multiprocessing.active_children() == []


def test_rows_have_the_scene_s_values_and_image(table: Path) -> None:
    settings = load_settings(ROOT / "params.yaml")
    rows = list(read_gauges(table.parent, settings))
    assert [split for split, _ in rows] == [scene.split for scene in SCENES[:5]]
    _, row = rows[3]
    assert (row.id, row.target, row.origin) == (SCENES[3].id, SCENES[3].reading, "scenes.csv:5")
    assert row.question == settings.task.question
    assert row.image == render(SCENES[3], settings.ingest.image_size)


COLUMN = {name: i for i, name in enumerate(Scene.__dataclass_fields__)}


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("reading", "12.5", "reading is '12.5', expected a whole number"),
        ("reading", "", "reading is '', expected a whole number"),
        ("face", "grey", "face is 'grey', expected a number"),
        ("face", "nan", "face is 'nan', expected a number"),
        ("sweep", "inf", "sweep is 'inf', expected a number"),
        ("split", "dev", "split is 'dev', expected train, val, test"),
        ("majors", "0", "majors is '0', expected more than 0"),
        ("radius", "-0.4", "radius is '-0.4', expected more than 0"),
        ("glare_width", "0.0", "glare_width is '0.0', expected more than 0"),
        ("noise", "-0.1", "noise is '-0.1', expected 0 or more"),
        ("noise_seed", "-1", "noise_seed is '-1', expected 0 or more"),
    ],
)
def test_the_error_for_a_bad_cell_names_its_line(column: str, text: str, message: str, table: Path) -> None:
    lines = table.read_text(encoding="utf-8").splitlines()
    cells = lines[3].split(",")
    cells[COLUMN[column]] = text
    table.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]), encoding="utf-8")
    with pytest.raises(ConcordError) as error:
        list(read_scenes(table))
    assert str(error.value).startswith(f"{table}:4: {message}. Correct it, or generate the table again: ")


@pytest.mark.parametrize("cut", [lambda line: line.rpartition(",")[0], lambda line: line + ",1"])
def test_a_line_with_a_wrong_number_of_cells_is_an_error(cut: object, table: Path) -> None:
    lines = table.read_text(encoding="utf-8").splitlines()
    lines[5] = cut(lines[5])  # type: ignore[operator]
    table.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConcordError, match=rf"scenes\.csv:6: \d+ cells under {len(COLUMN)} columns"):
        list(read_scenes(table))


def test_a_truncated_table_is_an_error(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(ConcordError, match=r"scenes\.csv:6: "):
        list(read_scenes(table))


def test_a_missing_or_malformed_table_is_an_error(table: Path) -> None:
    content = table.read_bytes()
    table.write_bytes(content.replace(b"train-00002", b"train-\xff0002"))
    with pytest.raises(ConcordError, match=r"scenes\.csv:4: not UTF-8"):
        list(read_scenes(table))
    for start in (b"", b"id,split\n", b"name:reading\n1:2\n"):
        table.write_bytes(start)
        with pytest.raises(ConcordError, match=r"scenes\.csv:1: no column .*reading.*generate the table again"):
            list(read_scenes(table))
    table.unlink()
    with pytest.raises(ConcordError, match=r"scenes\.csv: no such file, but ingest\.source: gauges reads it"):
        list(read_scenes(table))

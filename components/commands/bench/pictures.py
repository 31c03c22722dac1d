"""Raw input of the data benchmark: different JPEG files and their table, drawn once and linked into smaller folders."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from components.errors import ConcordError
from components.shared.io.atomic import new_folder, write_json
from components.shared.io.process_pool import process_pool
from components.shared.io.progress import with_progress

SIDE = 256  # pixels
QUALITY = 90
TABLE = "labels.csv"
HEADER = ("image", "reading")
MIN_ROWS = 400  # fewer rows leave a shot group empty
_NOTE = "made.json"  # written last: the folder is complete
_PART = 1000  # files per folder
_ATLAS = 2048  # pixels
_SLOPE = 1.4  # amplitude falls with frequency to this power; files get 13 KB, like photographs of this size
# Number of few-shot labels, of medium-shot labels and of all labels; see `readings`.
_FEW, _MEDIUM, _LABELS = 4, 4, 21
_atlases: list[Image.Image] = []


def raw_folder(home: Path, rows: int) -> Path:
    """Returns `HOME/ROWS`, a folder with a table of `rows` lines and its images; creates it if needed.

    An existing folder is reused; images of a larger folder are hard-linked instead of drawn again.

    Raises:
        ConcordError: too few rows to fill every shot group.
    """
    if rows < MIN_ROWS:
        raise ConcordError(f"bench data: {rows} rows are too few to fill every shot group. Use at least {MIN_ROWS}.")
    folder, note = home / str(rows), {"rows": rows, "side": SIDE, "quality": QUALITY, "slope": _SLOPE}
    if _note(folder) == note:
        return folder
    larger = [path for path in home.glob("*") if (_note(path) | {"rows": rows}) == note and int(path.name) > rows]
    with new_folder(folder) as partial:
        for part in range(0, rows, _PART):
            (partial / picture_path(part)).parent.mkdir(parents=True)
        if larger:
            for number in range(rows):
                os.link(larger[0] / picture_path(number), partial / picture_path(number))
        else:
            _draw_all(partial, rows)
        with open(partial / TABLE, "w", encoding="utf-8", newline="") as file:
            lines = ((picture_path(number), reading) for number, reading in enumerate(readings(rows)))
            csv.writer(file, lineterminator="\n").writerows([HEADER, *lines])
        write_json(partial / _NOTE, note)
    return folder


def _note(folder: Path) -> dict[str, object]:
    try:
        return dict(json.loads((folder / _NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def picture_path(number: int) -> str:
    """Path of picture `number` inside the folder."""
    return f"images/{number // _PART:04d}/{number:07d}.jpg"


def readings(rows: int) -> list[int]:
    """Returns `rows` long-tailed labels from 0 to 100.

    With ingest's balanced split, the last labels keep 2 rows each in train (few-shot), the ones before 8 (medium-shot),
    and the counts of the others fall off exponentially.
    """
    common = _LABELS - _FEW - _MEDIUM
    rest = rows - 6 * _FEW - 24 * _MEDIUM
    weights = np.exp(-np.arange(common) / 6)
    ends = np.round(np.cumsum(weights) / weights.sum() * rest).astype(int)
    counts = [*np.diff(ends, prepend=0).tolist(), *[24] * _MEDIUM, *[6] * _FEW]
    step = 100 // (_LABELS - 1)
    return [label * step for label, count in enumerate(counts) for _ in range(count)]


def _draw_all(folder: Path, rows: int) -> None:
    parts = range(0, rows, _PART)
    with process_pool() as pool:
        parts_drawn = pool.map(_draw_part, [folder] * len(parts), parts, [min(start + _PART, rows) for start in parts])
        for _ in with_progress(parts_drawn, f"drawing {rows:,} images, in parts of {_PART:,}", len(parts)):
            pass


def _draw_part(folder: Path, start: int, end: int) -> None:
    for number in range(start, end):
        (folder / picture_path(number)).write_bytes(draw(number))


def draw(number: int) -> bytes:
    """Draws picture `number` as JPEG of `SIDE` pixels: the mean of three random crops of noise."""
    rng = np.random.default_rng(number)
    first, second, third = (_crop(rng, atlas) for atlas in _noise())
    mixed = Image.blend(Image.blend(first, second, 0.5), third, 1 / 3)
    out = io.BytesIO()
    mixed.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _crop(rng: np.random.Generator, atlas: Image.Image) -> Image.Image:
    left, top = (int(at) for at in rng.integers(0, _ATLAS - SIDE, 2))
    return atlas.crop((left, top, left + SIDE, top + SIDE))


def _noise() -> list[Image.Image]:
    """Three large noise images, the same in every process."""
    if not _atlases:
        _atlases.extend(Image.fromarray(np.stack(list(_channels(seed)), axis=-1)) for seed in range(3))
    return _atlases


def _channels(seed: int) -> Iterator[np.ndarray]:
    """Yields red, green and blue as `(_ATLAS, _ATLAS)` bytes, correlated as in a photograph."""
    rng = np.random.default_rng([seed, _ATLAS])
    frequency = np.hypot(np.fft.fftfreq(_ATLAS)[:, None], np.fft.rfftfreq(_ATLAS)[None])
    frequency[0, 0] = np.inf
    light = np.fft.rfft2(rng.normal(size=(_ATLAS, _ATLAS)))
    for _ in range(3):
        tint = np.fft.rfft2(rng.normal(size=(_ATLAS, _ATLAS)))
        noise = np.fft.irfft2((light + 0.5 * tint) / frequency**_SLOPE, (_ATLAS, _ATLAS))
        yield np.clip(128 + 80 * noise / noise.std(), 0, 255).astype(np.uint8)

"""The source `gauges`: images of analog gauges, rendered from a table of scenes; used by the default experiment.

A scene is one line of the table and describes a gauge and the photograph of it. `draw_scenes` samples the table from a
seed. Its readings are long-tailed as in a plant: most are near the operating point, alarms are rare. The table is saved
as data/scenes.csv, which DVC versions, and `render` turns each line into an image: every pixel follows from the table.

The images are ambiguous, and how much does not depend on the reading. The needle flutters around the reading, as at a
pump's outlet, and the image shows one moment. Glare may cover the needle, or the needle hardly differs from the face,
and there is blur and noise. So an image is compatible with a range of neighbouring readings, narrow or wide. This
ambiguity makes a model's predictions shrink towards the common readings.
"""

import csv
import io
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.errors import ConcordError
from components.ingest.quarantine import Quarantine
from components.ingest.sources.tables import read_records
from components.settings import Settings
from components.shared.io.process_pool import process_pool
from components.shared.rows.rows import SPLITS, Row

WINDOW = 1024  # scenes that are rendered at a time
Pixels = NDArray[np.floating]

# Added to a grey to make it red at full strength.
REDNESS: Pixels = np.array([0.4, -0.25, -0.25], np.float32)
# Fields whose values must be positive, or not negative, so that the scene can be rendered.
_POSITIVE = ("radius", "majors", "minors", "glare_width")
_NOT_NEGATIVE = ("smear", "blur", "noise", "noise_seed")
# In percent of the scale: smallest and largest standard deviation of the flutter; distance of the stop pins from the
# ends of the scale.
FLUTTER = (6.0, 16.0)
PIN = 3.0
_TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number"}
_REMEDY = "Correct it, or generate the table again: python -m components data make"


@dataclass(frozen=True)
class Scene:
    """One gauge. Lengths are fractions of the image's side, angles are in degrees, greys and light in [0, 1].

    Attributes:
        reading: the target: the needle's mean position over its flutter, in percent of the scale.
        caught: the needle's deviation from the reading in the image, in percent of the scale.
        smear: how far the needle moves to either side during the exposure, in percent of the scale.
        face, ink, needle, rim: grey levels of the dial, its marks, the needle and the housing.
        red: redness of the needle; it decreases with the needle's contrast.
        tint: colour of the light: red minus blue.
        start, sweep: angle of the scale's zero, clockwise from straight up, and the angle from there to its end.
        turn: angle by which the gauge is mounted out of the upright.
        radius, x, y: radius and centre of the dial.
        majors, minors: number of major divisions of the scale, and of minor ones in each.
        width, tail: the needle's width and the length of its tail.
        light, light_angle: fall-off of the light across the image, and the direction that it comes from.
        glare, glare_offset, glare_width: strength of a reflection on the dial, its angle from the needle, its width.
        blur, noise: standard deviations.
        noise_seed: seed of the noise.
    """

    id: str
    split: str
    reading: int
    caught: float
    smear: float
    face: float
    ink: float
    needle: float
    red: float
    rim: float
    tint: float
    start: float
    sweep: float
    turn: float
    radius: float
    x: float
    y: float
    majors: int
    minors: int
    width: float
    tail: float
    light: float
    light_angle: float
    glare: float
    glare_offset: float
    glare_width: float
    blur: float
    noise: float
    noise_seed: int


def label_counts(head: int, operating_point: int, decay: float, floor: int) -> NDArray[np.int64]:
    """Number of training scenes for each reading 0..100, `(101,)`.

    The number is `head` at the operating point, falls by a factor of e every `decay` percent on both sides, and is at
    least `floor`.
    """
    distance = np.abs(np.arange(101) - operating_point)
    return np.maximum(np.rint(head * np.exp(-distance / decay)), floor).astype(np.int64)


def draw_scenes(seed: int, train: NDArray[np.int64], val: int, test: int) -> list[Scene]:
    """Samples the table of scenes.

    Args:
        seed: of the random generator; it determines the whole table.
        train: `(101,)` training scenes per reading.
        val, test: scenes per reading, the same for all readings.
    """
    rng = np.random.default_rng(seed)
    per_reading = {"train": train, "val": np.full(101, val), "test": np.full(101, test)}
    scenes = []
    for split in SPLITS:
        readings = np.repeat(np.arange(101), per_reading[split])
        rng.shuffle(readings)
        scenes += [_draw(rng, f"{split}-{i:05d}", split, int(reading)) for i, reading in enumerate(readings)]
    return scenes


def _draw(rng: np.random.Generator, name: str, split: str, reading: int) -> Scene:
    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    dark = rng.random() < 0.3
    face = between(0.08, 0.25) if dark else between(0.7, 0.95)
    ink = between(0.7, 0.9) if dark else between(0.05, 0.3)
    # How hard the needle is to see, independent of the reading: from 0, clear, to 1, hardly visible.
    severity = float(rng.random())
    faded = rng.random() < 0.5
    contrast = 1 - 0.85 * severity if faded else 1 - 0.7 * severity
    flutter = float(rng.uniform(*FLUTTER))
    needle = round(face + (ink - face) * contrast, 4)
    return Scene(
        id=name,
        split=split,
        reading=reading,
        # Pins at both ends of the scale stop the needle.
        caught=round(float(np.clip(reading + rng.normal(0, flutter), -PIN, 100 + PIN)) - reading, 4),
        smear=round(0.2 * flutter, 4),
        face=face,
        ink=ink,
        needle=needle,
        red=round(float(rng.uniform(0.5, 1.0)) * contrast, 4),
        rim=between(0.1, 0.6),
        tint=between(-0.08, 0.08),
        start=between(-95, -85),
        sweep=between(172, 188),
        turn=between(-4, 4),
        radius=between(0.41, 0.46),
        x=between(0.485, 0.515),
        y=between(0.485, 0.515),
        majors=int(rng.choice([5, 10])),
        minors=int(rng.choice([2, 4, 5])),
        width=between(0.018, 0.035),
        tail=between(0.0, 0.12),
        light=between(0.0, 0.35),
        light_angle=between(0, 360),
        glare=between(0.0, 0.3) if faded else round(0.3 + 0.7 * severity, 4),
        glare_offset=between(-14, 14),
        glare_width=between(12, 18 + 40 * severity),
        blur=between(0.2, 0.6 + 1.4 * severity),
        noise=between(0.005, 0.02 + 0.09 * severity),
        noise_seed=int(rng.integers(2**31)),
    )


def render(scene: Scene, size: int) -> bytes:
    """Renders the scene as a JPEG of `size` x `size` pixels."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = grid[None, :] - scene.x, grid[:, None] - scene.y
    r = np.hypot(x, y)
    # Angle of each pixel in degrees, clockwise from straight up, and from the scale's zero.
    bearing = np.degrees(np.arctan2(x, -y)) - scene.turn
    along = np.mod(bearing - scene.start, 360.0)
    pixel = 1.0 / size

    def inside(distance: Pixels) -> Pixels:
        return np.clip(0.5 - distance / pixel, 0.0, 1.0)

    def paint(canvas: Pixels, colour: float | Pixels, cover: Pixels) -> Pixels:
        return canvas + (colour - canvas) * cover[..., None]

    canvas: Pixels = np.full((size, size, 3), 0.45, np.float32)
    canvas = paint(canvas, scene.rim, inside(r - scene.radius * 1.09))
    canvas = paint(canvas, scene.face, inside(r - scene.radius))
    for count, inner, width in ((scene.majors, 0.76, 0.016), (scene.majors * scene.minors, 0.86, 0.008)):
        step = scene.sweep / count
        off = np.abs(along - np.clip(np.rint(along / step), 0, count) * step)
        sideways = r * np.radians(np.minimum(off, 90.0))
        ends = np.maximum(scene.radius * inner - r, r - scene.radius * 0.94)
        canvas = paint(canvas, scene.ink, inside(np.maximum(sideways - width, ends)))
    shown = scene.sweep * (scene.reading + scene.caught) / 100
    angle = math.radians(scene.start + scene.turn + shown)
    ahead, aside = x * math.sin(angle) - y * math.cos(angle), x * math.cos(angle) + y * math.sin(angle)
    reach = scene.radius * 0.84
    taper = scene.width * (1 - 0.6 * np.clip(ahead / reach, 0, 1))
    fan = np.abs(ahead) * math.radians(scene.sweep * scene.smear / 100)
    needle = np.maximum(np.abs(aside) - taper - fan, np.maximum(ahead - reach, -scene.tail - ahead))
    # The needle moves during the exposure, so it covers each pixel for only a part of the time.
    canvas = paint(canvas, scene.needle + scene.red * REDNESS, inside(needle) * np.sqrt(taper / (taper + fan)))
    canvas = paint(canvas, scene.ink, inside(r - 0.035))
    # Glare is a bright sector at an angle near the needle's, strongest towards the rim.
    glare_at = shown + scene.glare_offset
    apart = np.abs(np.mod(along - glare_at + 180, 360) - 180)
    shine = np.exp(-0.5 * (apart / scene.glare_width) ** 2) * np.clip(r / (0.35 * scene.radius), 0, 1)
    canvas = paint(canvas, 0.97, (scene.glare * shine * inside(r - scene.radius)).astype(np.float32))
    lit = math.radians(scene.light_angle)
    canvas = canvas * (1 - scene.light * (0.5 + x * math.sin(lit) - y * math.cos(lit)))[..., None]
    image = Image.fromarray(_bytes(canvas * (1 + scene.tint * np.array([1, 0, -1])))).filter(
        ImageFilter.GaussianBlur(scene.blur * size / 64)
    )
    grain = np.random.default_rng(scene.noise_seed).normal(0, scene.noise, (size, size, 1))
    image = Image.fromarray(_bytes(np.asarray(image, np.float32) / 255 + grain))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _bytes(colour: NDArray[np.floating]) -> NDArray[np.uint8]:
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_scenes(scenes: list[Scene]) -> str:
    """Formats the table as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Scene)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(scene) for scene in scenes)
    return out.getvalue()


def read_scenes(path: Path) -> Iterator[tuple[int, Scene]]:
    """Yields line number and scene of each line.

    Raises:
        ConcordError: the file is missing or not CSV in UTF-8, or a line is not a valid scene.
    """
    if not path.is_file():
        raise ConcordError(
            f"{path}: no such file, but ingest.source: gauges reads it. Correct ingest.source, ingest.csv or the path "
            "of the data."
        )
    lines = read_records(path)
    _, header = next(lines, (1, []))
    missing = [f.name for f in fields(Scene) if f.name not in header]
    if missing:
        raise ConcordError(f"{path}:1: no column {', '.join(missing)}. {_REMEDY}")
    for line, cells in lines:
        try:
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells under {len(header)} columns")
            yield line, _scene(dict(zip(header, cells, strict=True)))
        except ValueError as error:
            raise ConcordError(f"{path}:{line}: {error}. {_REMEDY}") from None


def _scene(cells: dict[str, str]) -> Scene:
    """Parses a scene; raises a ValueError that names the first invalid cell."""
    values: dict[str, Any] = {}
    for field in fields(Scene):
        kind, text = field.type, cells[field.name]
        try:
            values[field.name] = kind(text)  # type: ignore[operator]
        except ValueError:
            raise ValueError(f"{field.name} is {text!r}, expected {_TYPE_NAMES[kind]}") from None
        if kind is float and not math.isfinite(values[field.name]):
            raise ValueError(f"{field.name} is {text!r}, expected {_TYPE_NAMES[kind]}")
    if values["split"] not in SPLITS:
        raise ValueError(f"split is {values['split']!r}, expected {', '.join(SPLITS)}")
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        if values[name] < 0 or (name in _POSITIVE and values[name] == 0):
            raise ValueError(
                f"{name} is {cells[name]!r}, expected {'more than 0' if name in _POSITIVE else '0 or more'}"
            )
    return Scene(**values)


def read_gauges(folder: Path, settings: Settings, *, quarantine: Quarantine | None = None) -> Iterator[tuple[str, Row]]:
    """Yields split and row of every scene in the folder's table; renders them meanwhile, on all cores.

    Args:
        folder: contains the table.
        settings: name of the table and size of the images.
        quarantine: counts the rows, but takes none: the table is generated, so an error in it means that the file is
            damaged.
    """
    assert settings.ingest.csv is not None  # the settings check it
    path, size = folder / settings.ingest.csv, settings.ingest.image_size
    scenes = read_scenes(path)
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        while window := list(islice(scenes, WINDOW)):
            if pool is None and len(window) == WINDOW:  # fewer are rendered before the processes have started
                pool = stack.enter_context(process_pool())
            draw = partial(render, size=size)
            window_scenes = (scene for _, scene in window)
            images = pool.map(draw, window_scenes, chunksize=32) if pool else map(draw, window_scenes)
            for (line, scene), image in zip(window, images, strict=True):
                if quarantine:
                    quarantine.read += 1
                origin = f"{path.name}:{line}"
                yield scene.split, Row(scene.id, image, float(scene.reading), settings.task.question, origin)

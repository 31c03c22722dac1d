"""Looks at a random sample of the images: sizes, and what is wrong with them."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from components.ingest.quarantine import BadValueError, TableErrors
from components.ingest.sources.image_files import ImageFiles
from components.ingest.sources.labels import Label
from components.shared.io.prefetch import prefetch
from components.shared.io.progress import with_progress
from components.shared.io.text import quoted
from components.shared.rows.images import BadImageError, load_decoders, open_image

SAMPLE = 500  # images that are opened


@dataclass
class ImageSurvey:
    """What a sample of the images looks like.

    Attributes:
        sizes: width and height of each image in the sample.
        modes: Pillow's mode of each.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)

    @property
    def longer_side(self) -> int:
        """Median of the longer sides, in pixels; 64 if no image could be opened."""
        sides = sorted(max(size) for size in self.sizes)
        return sides[len(sides) // 2] if sides else 64


def survey_images(labels: Sequence[Label], images: ImageFiles, errors: Sequence[TableErrors]) -> ImageSurvey:
    """Opens up to `SAMPLE` images, drawn at random, and reads their headers.

    Args:
        labels: of all images.
        images: of which those inside tables are a random sample already.
        errors: of each table; images that do not open or are equal to another one are added to them.
    """
    kept = set(images.kept)
    usable = [label for label in labels if label.image not in images or label.image in kept]
    sample = random.Random(0).sample(usable, min(SAMPLE, len(usable)))
    tables = {table.name: table for table in errors}
    load_decoders()
    survey = ImageSurvey()
    first_of: dict[str, Label] = {}
    looks = prefetch(lambda label: _look(label, images), sample)
    for label, look in zip(with_progress(sample, "reading images", len(sample)), looks, strict=True):
        if isinstance(look, BadValueError):
            tables[label.table].add(label.line, None, label.image, look)
            continue
        survey.sizes.append(look.size)
        survey.modes.append(look.mode)
        if (first := first_of.setdefault(look.digest, label)) is not label:
            kind = "same image twice" if first.target == label.target else "same image with two targets"
            remedy = f"{quoted(first.image)} has the same bytes: remove one of them"
            tables[label.table].add(label.line, None, label.image, BadValueError(kind, remedy))
    return survey


@dataclass(frozen=True)
class _Look:
    size: tuple[int, int]
    mode: str
    digest: str


def _look(label: Label, images: ImageFiles) -> _Look | BadValueError:
    try:
        data = images.read(label.image)
        with open_image(data) as image:
            return _Look(image.size, image.mode, hashlib.sha256(data).hexdigest())
    except OSError as error:
        return BadValueError("image cannot be read", f"{error.strerror}: make it readable")
    except BadImageError as bad:
        return BadValueError("image does not open", f"{bad}: replace the file or remove the row")

"""One image, looked at closely: does it decode to its last pixel, and what would the model see?"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image
from xxhash import xxh3_128

from components.shared.rows.images import BadImageError, into_rgb, into_small_grey, open_image
from components.validate.perceptual_hash import SIDE, thumbnail

# Modes that become 8-bit RGB with every value as it is. Others are converted, and lose depth, gamut or transparency.
PLAIN_MODES = ("1", "L", "P", "RGB")
_COLOURS = np.uint32(0x00FFFFFF)


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Attributes:
        width, height: in pixels, as stored; None where not even the header can be read.
        mode, format: Pillow's names.
        content: XXH3 (128 bits) of what the model sees, so that one picture saved twice is one; None where undecodable.
            It tells pictures apart by the million; against somebody who makes two of one hash it is no proof.
        reduced: whether `content` is of less than every pixel: then equal ones are of pictures that may be one.
        thumbnail: the picture small and grey, to find what looks like it; None where undecodable.
        fault: why it does not decode, in words; None where it does.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    content: str | None = None
    reduced: bool = False
    thumbnail: bytes | None = None
    fault: str | None = None


def look(data: bytes | None, reduce: bool = False) -> Look:
    """Decodes an encoded image completely. Never raises: a decoder may fail in any way on broken bytes.

    Args:
        data: the file.
        reduce: where `into_small_grey` can, look at that: all of `Look` but `content` is the same, thumbnails within a
            rounding, for half the time.
    """
    try:
        image = open_image(data)
    except BadImageError as bad:
        return Look(fault=str(bad))
    with image:
        size = image.size
        seen = Look(*size, image.mode, image.format)
        try:
            small = into_small_grey(image, 2 * SIDE) if reduce else None
            pixels = small or into_rgb(image)
        except BadImageError as bad:
            return replace(seen, fault=str(bad))
    if small:
        return replace(seen, content=_quick(small, size), reduced=True, thumbnail=thumbnail(small, size))
    return replace(seen, content=_content(pixels), thumbnail=thumbnail(pixels))


def _quick(small: Image.Image, of: tuple[int, int]) -> str:
    """The hash of a reduced picture, with the size that it has in full."""
    return xxh3_128(f"of {of}".encode() + small.tobytes()).hexdigest()


def _content(pixels: Image.Image) -> str:
    """The hash of an RGB picture."""
    digest = xxh3_128(f"{pixels.size}".encode())
    try:
        packed = np.frombuffer(pa.array(pixels).values.buffers()[1], np.uint32)  # as Pillow has it, not copied
    except ValueError:  # too large for one piece of memory, which goes by the size alone
        digest.update(np.asarray(pixels).data)
    else:
        digest.update((packed & _COLOURS).data)  # the fourth byte may be anything
    return digest.hexdigest()

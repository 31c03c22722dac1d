"""One image, looked at closely: does it decode to its last pixel, and what would the model see?"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image
from xxhash import xxh3_128

from components.shared.data.images import BadImageError, into_rgb, open_image
from components.validate.near import thumbnail

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
        thumbnail: the same, small and grey, to find what looks like it; None where undecodable.
        fault: why it does not decode, in words; None where it does.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    content: str | None = None
    thumbnail: bytes | None = None
    fault: str | None = None


def look(data: bytes | None) -> Look:
    """Decodes an encoded image completely. Never raises: a decoder may fail in any way on broken bytes."""
    try:
        image = open_image(data)
    except BadImageError as bad:
        return Look(fault=str(bad))
    with image:
        seen = Look(image.width, image.height, image.mode, image.format)
        try:
            pixels = into_rgb(image)
        except BadImageError as bad:
            return replace(seen, fault=str(bad))
    return replace(seen, content=_content(pixels), thumbnail=thumbnail(pixels))


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

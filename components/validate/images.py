"""One image, looked at closely: does it decode to its last pixel, and what would the model see?"""

import hashlib
from dataclasses import dataclass, replace

from components.shared.data.images import BadImageError, as_rgb, open_image
from components.validate.near import perceptual_hash

# Modes that become 8-bit RGB with every value as it is. Others are converted, and lose depth, gamut or transparency.
PLAIN_MODES = ("1", "L", "P", "RGB")


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Attributes:
        width, height: in pixels, as stored; None where not even the header can be read.
        mode, format: Pillow's names.
        content: SHA-256 of what the model sees, so that one picture saved twice is one; None where undecodable.
        hash: perceptual hash of the same, see near.py; None where undecodable or of one shade.
        fault: why it does not decode, in words; None where it does.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    content: str | None = None
    hash: bytes | None = None
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
            pixels = as_rgb(image)
        except BadImageError as bad:
            return replace(seen, fault=str(bad))
    digest = hashlib.sha256(f"{pixels.size}".encode())
    digest.update(pixels.tobytes())
    return replace(seen, content=digest.hexdigest(), hash=perceptual_hash(pixels))

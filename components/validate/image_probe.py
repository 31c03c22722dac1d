"""Decodes one image completely and describes it: size, mode, content hash, thumbnail, or the decoding error."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image
from xxhash import xxh3_128

from components.shared.rows.images import (
    BadImageError,
    frame_count,
    into_rgb,
    into_small_grey,
    largest_value,
    open_image,
    room_to_decode,
)
from components.validate.perceptual_hash import SIDE, thumbnail

# Modes that convert to 8-bit RGB without loss. Other modes lose depth, gamut or transparency.
PLAIN_MODES = ("1", "L", "P", "RGB")
_STRIP, _PART = 64, 1 << 20  # rows and pixels that are hashed at a time, so that no large image is copied
_RGB_BYTES = np.uint32(0x00FFFFFF)


@dataclass(frozen=True, slots=True)
class ImageProbe:
    """The description of one image.

    Attributes:
        width: in pixels, as stored; None if the header cannot be read.
        height: likewise.
        mode: Pillow's name.
        format: Pillow's name.
        content: 128-bit XXH3 of the pixels that the model gets, so that one picture saved in two formats has one hash;
            None if the image cannot be decoded. The hash does not protect against deliberate collisions.
        reduced: whether `content` is of a reduced image; then equal hashes mean that the pictures may be equal.
        thumbnail: small grey image for the perceptual hash; None if the image cannot be decoded.
        peak: largest value of 16-bit grey as a share of the range; None for other images.
        frames: number of frames or pages, of which the first is used; None if the image cannot be decoded.
        fault: why the image cannot be decoded; None if it can.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    content: str | None = None
    reduced: bool = False
    thumbnail: bytes | None = None
    peak: float | None = None
    frames: int | None = None
    fault: str | None = None


def probe_image(data: bytes | None, reduce: bool = False, grey_bits: int | None = None) -> ImageProbe:
    """Decodes an encoded image completely. Never raises, because a decoder may raise anything on damaged bytes.

    Args:
        data: the encoded file.
        reduce: decode at reduced size if `into_small_grey` supports the image. This takes half the time; all fields but
            `content` and `reduced` are the same, thumbnails up to rounding.
        grey_bits: the task's, see `decode_image`.
    """
    try:
        image = open_image(data)
    except BadImageError as error:
        return ImageProbe(fault=str(error))
    with image, room_to_decode(image):
        return _probe(image, reduce, grey_bits)


def _probe(image: Image.Image, reduce: bool, grey_bits: int | None) -> ImageProbe:
    size = image.size
    probe = ImageProbe(*size, image.mode, image.format)
    try:
        probe = replace(probe, frames=frame_count(image), peak=largest_value(image, grey_bits))
        small = into_small_grey(image, 2 * SIDE) if reduce else None
        pixels = small or into_rgb(image, grey_bits)
    except BadImageError as error:
        return replace(probe, fault=str(error))
    if small:
        return replace(probe, content=_reduced_hash(small, size), reduced=True, thumbnail=thumbnail(small, size))
    return replace(probe, content=_full_hash(pixels), thumbnail=thumbnail(pixels))


def _reduced_hash(small: Image.Image, full_size: tuple[int, int]) -> str:
    """Hash of a reduced grey image and its size at full resolution."""
    return xxh3_128(f"of {full_size}".encode() + small.tobytes()).hexdigest()


def _full_hash(pixels: Image.Image) -> str:
    """Hash of an RGB image."""
    digest = xxh3_128(f"{pixels.size}".encode())
    try:
        packed = np.frombuffer(pa.array(pixels).values.buffers()[1], np.uint32)  # Pillow's memory, not copied
    except ValueError:  # Pillow stores an image of this size in several blocks; that depends on the size alone
        for top in range(0, pixels.height, _STRIP):
            strip = pixels.crop((0, top, pixels.width, min(top + _STRIP, pixels.height)))
            digest.update(np.asarray(strip).data)
    else:
        for start in range(0, len(packed), _PART):
            digest.update((packed[start : start + _PART] & _RGB_BYTES).data)  # the fourth byte is undefined
    return digest.hexdigest()

"""Decodes images into the form that the model sees: upright, 8-bit RGB, on white where transparent.

Training, evaluation, the checks and the served model all decode with `decode_image`.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from components.shared.io.memory_budget import decoding_budget

# Plain raster formats only: decoders of others (EPS) start external programs on the file's content.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # the limit above which Pillow warns: 256 MB as RGB
RGB_BYTES = 4  # of a pixel in Pillow's memory
_MOST_BYTES = 21  # of a pixel while it is decoded: transparent, and rotated
# Formats whose 16-bit grey Pillow may read as 32-bit grey, with values up to 65,535.
_WIDE_16_BIT = ("PNG", "PPM")
_OWN_BITS = "own grey bits"  # key of `Image.info`, since decoding drops what the header says
_WITH_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")


REMEDY = "Remove its row from the raw data, or replace the image, and run ingest again."


class BadImageError(ValueError):
    """An image that cannot be decoded for a model; the message says why."""


def load_decoders() -> None:
    """Loads Pillow's decoders, which several threads must not do at once, and silences Pillow's warnings."""
    Image.init()
    warnings.filterwarnings("ignore", module=r"PIL\..*")


def open_image(data: bytes | None) -> Image.Image:
    """Reads an image's header, not its pixels. The format is taken from the content, never from a file name.

    Raises:
        BadImageError: the data is empty, or not an image in one of `FORMATS`.
    """
    if not data:
        raise BadImageError("empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if own := _own_bits(image):
            image.info[_OWN_BITS] = own
        return image
    except UnidentifiedImageError:
        raise BadImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder may raise anything on arbitrary bytes
        raise BadImageError(_message(error)) from error


@contextmanager
def room_to_decode(image: Image.Image) -> Iterator[None]:
    """Waits until this process has the memory to decode an image, and frees its pixels at the end.

    A file of a few kilobytes may need hundreds of megabytes, and threads decode several at once. An image that needs
    more than the whole budget is decoded alone.

    Args:
        image: from `open_image`; neither it nor what became of it may be used afterwards.
    """
    with decoding_budget().taken(_bytes_to_decode(image)):
        try:
            yield
        finally:
            image.close()


def _bytes_to_decode(image: Image.Image) -> int:
    """Bytes that decoding and a grey copy of the result have in use at most, by the image's header."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS or not decoding_budget().counts(pixels * _MOST_BYTES):
        return 0  # refused before it is decoded, or too small to look further
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)
    if image.has_transparency_data or _is_deep(image):
        each = 16
    else:
        each = stored + RGB_BYTES * (image.mode != "RGB")
    return pixels * (each + stored * _may_be_rotated(image) + 1)  # 1: a grey copy


def _may_be_rotated(image: Image.Image) -> bool:
    """Whether EXIF may ask for a rotated copy. A PNG's is not read here, since that may decode the image."""
    if image.format == "PNG":
        return "exif" in image.info
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a decoder may raise anything on arbitrary bytes
        return True


def into_rgb(image: Image.Image, grey_bits: int | None = None) -> Image.Image:
    """Decodes all pixels, turns the image upright by its EXIF tag, and converts it to 8-bit RGB.

    The image passed in may be changed and returned; do not use it afterwards. The result has its pixels loaded and
    needs no open file.

    16-bit grey keeps the upper 8 of its bits (Pillow alone would make all of it white). Transparent pixels become
    white, so that hidden colours stay hidden. CMYK is converted without its colour profile.

    Args:
        image: from `open_image`.
        grey_bits: how many of the 16 bits grey values use (`task.grey_bits`); None: all of them. A file that states
            its own range is read by that, and other images do not depend on it.

    Raises:
        BadImageError: the image does not decode, has more than `MAX_PIXELS`, its pixel values have no known range, or
            one of them has more than `grey_bits`.
    """
    _check_size(image)
    deep = _is_deep(image)
    if not deep and image.mode in ("I", "F"):
        raise BadImageError(f"pixels of mode {image.mode} have no known range; save the image with 8 or 16 bits")
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if deep:
            image = _upper_bits(image, _bits_used(image, grey_bits))
        elif image.has_transparency_data:
            with_alpha = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
        return image if image.mode == "RGB" else image.convert("RGB")
    except BadImageError:
        raise
    except Exception as error:  # a decoder may raise anything on arbitrary bytes
        raise BadImageError(_message(error)) from error


def largest_value(image: Image.Image, grey_bits: int | None = None) -> float | None:
    """Largest value of 16-bit grey as a share of the range; None for other images. Decodes all pixels.

    Args:
        image, grey_bits: see `into_rgb`.

    Raises:
        BadImageError: the image does not decode, or has more than `MAX_PIXELS`.
    """
    if not _is_deep(image):
        return None
    _check_size(image)
    try:
        return float(np.asarray(image).max()) / ((1 << _bits_used(image, grey_bits)) - 1)
    except Exception as error:  # a decoder may raise anything on arbitrary bytes
        raise BadImageError(_message(error)) from error


def frame_count(image: Image.Image) -> int:
    """Number of frames of an animation, or of pages of a TIFF; only the first is decoded.

    Raises:
        BadImageError: the frames cannot be counted.
    """
    if image.format not in _WITH_FRAMES:  # the second image of a JPEG is a preview
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # a decoder may raise anything on arbitrary bytes
        raise BadImageError(_message(error)) from error
    finally:
        image.seek(0)


def _is_deep(image: Image.Image) -> bool:
    """Whether this is 16-bit grey."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in _WIDE_16_BIT)


def _own_bits(image: ImageFile.ImageFile) -> int | None:
    """How many bits 16-bit grey uses by the file's own word; None if the file allows all 16 and may use fewer."""
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        stored = int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])  # type: ignore[attr-defined]
        return stored if stored < 16 else None
    if image.format == "PPM" and image.mode == "I":
        args = image.tile[0].args
        maximum = args[-1] if isinstance(args, tuple) else 65535
        return 16 if maximum != 65535 else None  # Pillow stretches other ranges to 16 bits
    return None


def _bits_used(image: Image.Image, grey_bits: int | None) -> int:
    return image.info.get(_OWN_BITS) or grey_bits or 16


def _upper_bits(image: Image.Image, bits: int) -> Image.Image:
    """The upper 8 of a 16-bit image's bits, as 8-bit grey.

    Raises:
        BadImageError: a value has more bits.
    """
    values = np.asarray(image).astype(np.uint32)
    if (largest := int(values.max(initial=0))) >> bits:
        raise BadImageError(f"a grey value of {largest}, which has more bits than task.grey_bits ({bits})")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def into_small_grey(image: Image.Image, least: int) -> Image.Image | None:
    """Decodes a JPEG to 8-bit grey at a half, a quarter or an eighth of its size (rounded up), in half the time.

    All bytes are decoded, so this raises an error wherever `into_rgb` does. As there, do not use the image afterwards.

    Args:
        image: from `open_image`.
        least: smallest length of either side in the result, in pixels.

    Returns:
        The small image; or None, with the image unchanged, if it is not a JPEG, is too small, must be rotated, or is
        neither grey nor RGB.

    Raises:
        BadImageError: see `into_rgb`.
    """
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or min(image.size) < 2 * least:
        return None
    _check_size(image)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        image.draft("L", (least, least))
        image.load()
    except Exception as error:  # a decoder may raise anything on arbitrary bytes
        raise BadImageError(_message(error)) from error
    return image


def decode_image(data: bytes | None, grey_bits: int | None = None) -> Image.Image:
    """Decodes an image into the form that the model sees: upright, 8-bit RGB.

    Args:
        data: the encoded file.
        grey_bits: see `into_rgb`.

    Raises:
        BadImageError: see `open_image` and `into_rgb`.
    """
    with open_image(data) as image, decoding_budget().taken(_bytes_to_decode(image)):
        return into_rgb(image, grey_bits)


def decoded_size(data: bytes | None, grey_bits: int | None = None) -> tuple[int, int]:
    """Width and height of the image that `decode_image` gives, of which nothing is kept.

    Raises:
        BadImageError: see `decode_image`.
    """
    with open_image(data) as image, room_to_decode(image):
        return into_rgb(image, grey_bits).size


def check_image(data: bytes | None, grey_bits: int | None = None) -> None:
    """Decodes an image completely, only to find errors; for JPEG faster than `decode_image`.

    Raises:
        BadImageError: wherever `decode_image` raises it.
    """
    with open_image(data) as image, room_to_decode(image):
        if not into_small_grey(image, least=1):
            into_rgb(image, grey_bits)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")


def _message(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    return f"does not decode: {str(error) or type(error).__name__}"[:120]

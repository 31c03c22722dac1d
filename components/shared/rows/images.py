"""An encoded image as the model sees it: upright, 8-bit RGB, nothing hidden. Training, evaluation, the checks and the
served model all read by `decode_image`."""

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Decoders of plain raster formats only: others start programs of their own on what is in the file (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own warning limit: 256 MB as RGB
# Formats whose 32-bit grey is 16-bit grey in a wider type: Pillow's readers scale it to 65,535.
_WIDE_16_BIT = ("PNG", "PPM")


class BadImageError(ValueError):
    """An image that cannot be shown to a model; the message says why, in words."""


def prepare() -> None:
    """Loads Pillow's decoders, which must not happen in several threads at once, and mutes its warnings."""
    Image.init()
    warnings.filterwarnings("ignore", module=r"PIL\..*")


def open_image(data: bytes | None) -> Image.Image:
    """The image with its header read, not its pixels. What it is goes by its content, never by a name.

    Raises:
        BadImageError: there are no bytes, or they are no image in one of `FORMATS`.
    """
    if not data:
        raise BadImageError("empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImageError(f"no image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # any decoder, any bytes
        raise BadImageError(_words(error)) from error


def into_rgb(image: Image.Image) -> Image.Image:
    """Decodes to the last pixel, turns upright by the EXIF tag, and gives 8-bit RGB. The image is taken over: what is
    returned may be the very same, changed, with its pixels loaded and its file no longer needed.

    Grey of 16 bits keeps its upper 8 (Pillow alone would make it all white). What is transparent lies on white, so that
    colours hidden beneath stay hidden. CMYK is converted without its colour profile.

    Raises:
        BadImageError: it does not decode, has more than `MAX_PIXELS`, or its values have no range that is known.
    """
    _check_size(image)
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _WIDE_16_BIT)
    if not deep and image.mode in ("I", "F"):
        raise BadImageError(f"pixels of mode {image.mode} have no range that is known; save it with 8 or 16 bits")
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if deep:
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        elif image.has_transparency_data:
            seen = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # any decoder, any bytes
        raise BadImageError(_words(error)) from error


def into_small_grey(image: Image.Image, least: int) -> Image.Image | None:
    """Of a JPEG file, a half, a quarter or an eighth of each side (rounded up), as 8-bit grey, for half the time.

    All its bytes are read and decoded as ever: where `into_rgb` finds a fault, so does this. Taken over as there.

    Args:
        image: as `open_image` gives it.
        least: pixels that both sides keep.

    Returns:
        None, and the image untouched, where it is of another format, too small, to be turned, or neither grey nor RGB.

    Raises:
        BadImageError: as `into_rgb`.
    """
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or min(image.size) < 2 * least:
        return None
    _check_size(image)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        image.draft("L", (least, least))
        image.load()
    except Exception as error:  # any decoder, any bytes
        raise BadImageError(_words(error)) from error
    return image


def decode_image(data: bytes | None) -> Image.Image:
    """An encoded image as the model sees it: RGB, 8 bits, upright.

    Raises:
        BadImageError: see `open_image` and `into_rgb`.
    """
    with open_image(data) as image:
        return into_rgb(image)


def check_image(data: bytes | None) -> None:
    """Decodes an image to the end, for its faults alone.

    Raises:
        BadImageError: where `decode_image` raises it.
    """
    with open_image(data) as image:
        if not into_small_grey(image, least=1):
            into_rgb(image)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")


def _words(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    return f"does not decode: {str(error) or type(error).__name__}"[:120]

"""One image, looked at closely: does it decode to its last pixel, and what would the model see?"""

import hashlib
import io
import warnings
from dataclasses import dataclass, replace

from PIL import Image, UnidentifiedImageError

# Decoders of plain raster formats only: others start programs of their own on what is in the file (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Modes whose values survive the conversion to 8-bit RGB; a 16-bit image comes out of it all white.
MODES = ("1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
MAX_PIXELS = 89_478_485  # Pillow's own warning limit: 256 MB as RGB


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Attributes:
        width, height: in pixels; None where not even the header can be read.
        mode, format: Pillow's names.
        content: SHA-256 of what the model sees, so that one picture saved twice is one; None where undecodable.
        fault: why it does not decode, in words; None where it does.
    """

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    content: str | None = None
    fault: str | None = None


def prepare() -> None:
    """Loads Pillow's decoders, which must not happen in several threads at once, and mutes its warnings."""
    Image.init()
    warnings.filterwarnings("ignore", module=r"PIL\..*")


def look(data: bytes | None) -> Look:
    """Decodes an encoded image completely. Never raises: a decoder may fail in any way on broken bytes."""
    if not data:
        return Look(fault="empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        return Look(fault=f"no image in a known format ({', '.join(FORMATS)})")
    except Exception as error:  # any decoder, any bytes
        return Look(fault=_words(error))
    with image:
        seen = Look(image.width, image.height, image.mode, image.format)
        if image.width * image.height > MAX_PIXELS:
            return replace(seen, fault=f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        try:
            pixels = image.convert("RGB") if image.mode in MODES else image
            digest = hashlib.sha256(f"{image.mode in MODES} {image.size}".encode())
            digest.update(pixels.tobytes())
        except Exception as error:  # as above
            return replace(seen, fault=_words(error))
    return replace(seen, content=digest.hexdigest())


def _words(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    return f"does not decode: {str(error) or type(error).__name__}"[:120]

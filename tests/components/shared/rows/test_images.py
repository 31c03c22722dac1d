"""One image as the model sees it: any mode, depth, tag or format, and no bytes that make it fail in another way."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from components.shared.rows.images import MAX_PIXELS, BadImageError, decode_image, into_rgb, open_image, prepare
from tests.support.raw_folder import SHARED_DATA, encoded, saved

# pytest undoes the filters that prepare() sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True, scope="module")
def decoders() -> None:
    prepare()


def seen(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


def with_tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode_image(saved(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("quality", [50, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_plain_jpeg_is_what_pillow_decodes_bit_by_bit(quality: int, subsampling: int) -> None:
    """The normalisation must not move what models were trained on."""
    data = saved(Image.open(io.BytesIO(encoded(3, size=50))), "JPEG", quality=quality, subsampling=subsampling)
    assert decode_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_real_photographs_are_what_pillow_decodes_bit_by_bit() -> None:
    images = sorted((SHARED_DATA / "meter-digits" / "images").rglob("*.jpg"))[:50]
    if not images:
        pytest.skip("meter-digits is not there")
    for path in images:
        plain = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert decode_image(path.read_bytes()).tobytes() == plain.tobytes()


def deep(format: str, order: str = "<") -> bytes:
    """Grey of 16 bits, from 0 to 65,535 in steps of 257."""
    values = (np.arange(256, dtype=np.uint32) * 257).reshape(16, 16)
    if format == "PPM":
        return b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    if order == ">":  # Pillow writes no big-endian TIFF: swap the two bytes of each value, and say so in the header
        return big_endian_tiff(values.astype(">u2").tobytes(), 16, 16)
    return saved(Image.fromarray(values.astype(np.uint16)), format)


def big_endian_tiff(pixels: bytes, width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 0), (277, 1), (278, height)]
    tags.append((279, len(pixels)))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in tags:
        value = start if tag == 273 else value
        entries += tag.to_bytes(2, "big") + (4).to_bytes(2, "big") + (1).to_bytes(4, "big") + value.to_bytes(4, "big")
    return b"MM\0*" + (8).to_bytes(4, "big") + len(tags).to_bytes(2, "big") + entries + bytes(4) + pixels


@pytest.mark.parametrize(("format", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">"), ("PPM", "<")])
def test_16_bits_keep_their_upper_8(format: str, order: str) -> None:
    data = deep(format, order)
    assert open_image(data).mode in ("I;16", "I;16B", "I")
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert (seen(data) == expected).all()


def test_16_bits_are_turned_upright_too() -> None:
    values = np.arange(32, dtype=np.uint16).reshape(4, 8) * 2000
    data = saved(Image.fromarray(values), "PNG", exif=with_tag(6))
    assert (seen(data)[..., 0] == np.rot90(values >> 8, -1)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(BadImageError, match=f"mode {mode} have no range"):
        decode_image(saved(Image.new(mode, (4, 4), 3), "TIFF"))


def test_cmyk_is_converted() -> None:
    ink = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert open_image(ink).mode == "CMYK"
    assert np.abs(seen(ink).astype(int) - [255, 0, 0]).max() < 8


def palette_with_hole() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return saved(image, "PNG", transparency=1)


def grey_with_alpha() -> bytes:
    return saved(Image.fromarray(np.array([[[9, 255], [0, 0]]], np.uint8), "LA"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(Image.fromarray(np.array([[[9, 8, 7, 255], [200, 0, 0, 0]]], np.uint8))), [[9, 8, 7], [255] * 3]),
        (grey_with_alpha(), [[9] * 3, [255] * 3]),
        (palette_with_hole(), [[255, 0, 0], [255] * 3]),
        (saved(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(4, 5, 6)),
         [[1, 2, 3], [255] * 3]),
    ],
    ids=["RGBA", "LA", "palette", "one colour"],
)  # fmt: skip
def test_what_is_transparent_lies_on_white(data: bytes, expected: list[list[int]]) -> None:
    assert seen(data).tolist() == [expected]


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.open(io.BytesIO(encoded(4, size=40)))
    assert decode_image(saved(image.convert("RGBA"))).tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    """A phone stores what its sensor saw, and a tag that says how it was held. Red belongs to the top left corner."""
    upright = Image.new("RGB", (32, 16), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    ops = Image.Transpose
    # What the sensor saw, if turning it back by the tag is to give the upright picture.
    stored = {
        2: ops.FLIP_LEFT_RIGHT, 3: ops.ROTATE_180, 4: ops.FLIP_TOP_BOTTOM, 5: ops.TRANSPOSE, 6: ops.ROTATE_90,
        7: ops.TRANSVERSE, 8: ops.ROTATE_270,
    }  # fmt: skip
    raw = upright.transpose(stored[orientation]) if orientation in stored else upright
    image = decode_image(saved(raw, "JPEG", exif=with_tag(orientation), quality=95))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 10


def test_a_broken_tag_is_no_fault() -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"
    assert decode_image(saved(Image.new("RGB", (4, 2)), "JPEG", exif=broken)).size == (4, 2)


def test_pixels_are_in_memory_though_the_stream_is_gone() -> None:
    image = decode_image(encoded(0))
    image.load()
    assert np.asarray(image).shape == (12, 12, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "no image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image in a known format"),
        (encoded(1, size=64)[:-200], "truncated"),
        (encoded(1, "JPEG", size=64)[:-200], "truncated"),
        (saved(Image.new("1", (9_500, 9_500))), f"more than {MAX_PIXELS:,}"),
        (saved(Image.new("1", (14_000, 14_000))), f"more than {MAX_PIXELS:,}"),
    ],
    ids=["none", "zero bytes", "text", "PostScript", "cut PNG", "cut JPEG", "bomb", "larger bomb"],
)
def test_hostile_bytes_are_refused_in_words(data: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if words.startswith("more"):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=words):
        decode_image(data)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_broken_bytes_give_rgb_or_the_one_error(seed: int, format: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(1, format, size=16))
    for position in rng.integers(0, len(data), 12):
        data[position] = rng.integers(0, 256)
    with suppress(BadImageError):
        assert decode_image(bytes(data)).mode == "RGB"


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP", "PPM"])
def test_a_picture_outlives_the_file_that_it_was_read_from(format: str) -> None:
    with open_image(encoded(1, format, size=64)) as image:
        picture = into_rgb(image)
    with Image.open(io.BytesIO(encoded(1, format, size=64))) as expected:
        assert picture.tobytes() == expected.convert("RGB").tobytes()
    picture.load()
    assert picture.copy().tobytes() == picture.tobytes()
    assert picture.resize((8, 8)).size == (8, 8)

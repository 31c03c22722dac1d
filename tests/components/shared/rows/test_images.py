"""Decoding of images in any mode, depth, orientation and format; bad bytes only ever raise BadImageError."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from components.shared.rows.images import MAX_PIXELS, BadImageError, decode_image, into_rgb, load_decoders, open_image
from tests.support.raw_folder import SHARED_DATA, encoded, saved

# pytest resets the warning filters that load_decoders() sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True, scope="module")
def decoders() -> None:
    load_decoders()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_is_converted_to_rgb(mode: str) -> None:
    image = decode_image(saved(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("quality", [50, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_plain_jpeg_is_decoded_exactly_as_by_pillow(quality: int, subsampling: int) -> None:
    """The normalisation must not change the images that models were trained on."""
    data = saved(Image.open(io.BytesIO(encoded(3, size=50))), "JPEG", quality=quality, subsampling=subsampling)
    assert decode_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_real_photographs_are_decoded_exactly_as_by_pillow() -> None:
    images = sorted((SHARED_DATA / "meter-digits" / "images").rglob("*.jpg"))[:50]
    if not images:
        pytest.skip("meter-digits is not there")
    for path in images:
        plain = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert decode_image(path.read_bytes()).tobytes() == plain.tobytes()


def encoded_16_bit(format: str, order: str = "<") -> bytes:
    """A 16-bit grey image with values from 0 to 65,535 in steps of 257."""
    values = (np.arange(256, dtype=np.uint32) * 257).reshape(16, 16)
    if format == "PPM":
        return b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    if order == ">":  # Pillow cannot write big-endian TIFF
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
    data = encoded_16_bit(format, order)
    assert open_image(data).mode in ("I;16", "I;16B", "I")
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert (pixels(data) == expected).all()


def grey_ramp(bits: int) -> np.ndarray:
    """All 256 shades of 8 bits, in the upper bits of `bits`; the lower ones are set where there are any."""
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    return np.asarray((ramp << (bits - 8)) | ((1 << (bits - 8)) - 1), np.uint16)


def deep_file(kind: str, values: np.ndarray) -> bytes:
    if kind == "PGM":
        return b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    if kind == "TIFF >":
        return big_endian_tiff(values.astype(">u2").tobytes(), 16, 16)
    return saved(Image.fromarray(values), kind)


DEEP_FILES = ("PNG", "TIFF", "TIFF >", "PGM")


@pytest.mark.parametrize("kind", DEEP_FILES)
@pytest.mark.parametrize("bits", [8, 9, 12, 15, 16])
def test_fewer_bits_in_a_16_bit_file_give_the_8_bit_picture(kind: str, bits: int) -> None:
    found = decode_image(deep_file(kind, grey_ramp(bits)), bits)
    assert found.tobytes() == decode_image(saved(Image.fromarray(grey_ramp(8).astype(np.uint8)))).tobytes()


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_a_value_with_more_bits_than_the_setting_is_an_error_that_names_it(kind: str) -> None:
    values = grey_ramp(12)
    values[3, 4] = 4096
    with pytest.raises(BadImageError, match=r"a grey value of 4096, which has more bits than task.grey_bits \(12\)"):
        decode_image(deep_file(kind, values), 12)


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """A little-endian TIFF that packs two values into three bytes."""
    first, second = values.reshape(-1, 2).astype(np.uint32).T
    packed = np.stack([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255], 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    tags.append((279, len(packed)))
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags
    )
    return b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4) + packed


@pytest.mark.parametrize("setting", [None, 12, 16])
@pytest.mark.parametrize("kind", ["TIFF", "PGM", "plain PGM"])
def test_a_file_that_states_12_bits_needs_no_setting(kind: str, setting: int | None) -> None:
    values = grey_ramp(12)
    files = {
        "TIFF": tiff_of_12_bits(values),
        "PGM": b"P5 16 16 4095\n" + values.astype(">u2").tobytes(),
        "plain PGM": b"P2 16 16 4095\n" + " ".join(map(str, values.ravel())).encode(),
    }
    found = np.asarray(decode_image(files[kind], setting))[..., 0]
    assert (found == grey_ramp(8)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_images_do_not_depend_on_the_grey_bits(mode: str) -> None:
    data = saved(Image.open(io.BytesIO(encoded(2, size=24))).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert decode_image(data, 12).tobytes() == decode_image(data).tobytes()


def test_16_bit_images_are_turned_upright() -> None:
    values = np.arange(32, dtype=np.uint16).reshape(4, 8) * 2000
    data = saved(Image.fromarray(values), "PNG", exif=exif_with(6))
    assert (pixels(data)[..., 0] == np.rot90(values >> 8, -1)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(BadImageError, match=f"mode {mode} have no known range"):
        decode_image(saved(Image.new(mode, (4, 4), 3), "TIFF"))


def test_cmyk_is_converted() -> None:
    ink = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert open_image(ink).mode == "CMYK"
    assert np.abs(pixels(ink).astype(int) - [255, 0, 0]).max() < 8


def palette_with_transparency() -> bytes:
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
        (palette_with_transparency(), [[255, 0, 0], [255] * 3]),
        (saved(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(4, 5, 6)),
         [[1, 2, 3], [255] * 3]),
    ],
    ids=["RGBA", "LA", "palette", "one colour"],
)  # fmt: skip
def test_transparent_pixels_become_white(data: bytes, expected: list[list[int]]) -> None:
    assert pixels(data).tolist() == [expected]


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.open(io.BytesIO(encoded(4, size=40)))
    assert decode_image(saved(image.convert("RGBA"))).tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_by_their_exif_tag(orientation: int) -> None:
    """Phones store the sensor's image and a tag for its orientation; upright, the red part is at the top left."""
    upright = Image.new("RGB", (32, 16), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    ops = Image.Transpose
    # The transformation of the stored image; undoing it by the tag gives the upright image.
    stored = {
        2: ops.FLIP_LEFT_RIGHT, 3: ops.ROTATE_180, 4: ops.FLIP_TOP_BOTTOM, 5: ops.TRANSPOSE, 6: ops.ROTATE_90,
        7: ops.TRANSVERSE, 8: ops.ROTATE_270,
    }  # fmt: skip
    raw = upright.transpose(stored[orientation]) if orientation in stored else upright
    image = decode_image(saved(raw, "JPEG", exif=exif_with(orientation), quality=95))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 10


def test_a_broken_exif_tag_is_ignored() -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"
    assert decode_image(saved(Image.new("RGB", (4, 2)), "JPEG", exif=broken)).size == (4, 2)


def test_pixels_are_loaded_into_memory() -> None:
    image = decode_image(encoded(0))
    image.load()
    assert np.asarray(image).shape == (12, 12, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image in a known format"),
        (encoded(1, size=64)[:-200], "truncated"),
        (encoded(1, "JPEG", size=64)[:-200], "truncated"),
        (saved(Image.new("1", (9_500, 9_500))), f"more than {MAX_PIXELS:,}"),
        (saved(Image.new("1", (14_000, 14_000))), f"more than {MAX_PIXELS:,}"),
    ],
    ids=["none", "zero bytes", "text", "PostScript", "cut PNG", "cut JPEG", "bomb", "larger bomb"],
)
def test_malicious_bytes_raise_an_error_with_a_reason(
    data: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message.startswith("more"):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=message):
        decode_image(data)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_broken_bytes_give_rgb_or_bad_image_error(seed: int, format: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(1, format, size=16))
    for position in rng.integers(0, len(data), 12):
        data[position] = rng.integers(0, 256)
    with suppress(BadImageError):
        assert decode_image(bytes(data)).mode == "RGB"


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP", "PPM"])
def test_an_image_stays_usable_after_its_file_is_closed(format: str) -> None:
    with open_image(encoded(1, format, size=64)) as opened:
        image = into_rgb(opened)
    with Image.open(io.BytesIO(encoded(1, format, size=64))) as expected:
        assert image.tobytes() == expected.convert("RGB").tobytes()
    image.load()
    assert image.copy().tobytes() == image.tobytes()
    assert image.resize((8, 8)).size == (8, 8)

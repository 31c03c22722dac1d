"""A close look at one image: broken bytes, hostile bytes, modes, sameness."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.shared.data.images import MAX_PIXELS, prepare
from components.validate.images import look
from tests.components.raw_folder import encoded

# pytest undoes the filters that prepare() sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True, scope="module")
def decoders() -> None:
    prepare()


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_whole_images_decode(format: str) -> None:
    seen = look(encoded(1, format, size=20))
    assert (seen.width, seen.height, seen.format, seen.fault) == (20, 20, format, None)
    assert seen.content


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_truncated_image_does_not(format: str) -> None:
    seen = look(encoded(1, format, size=64)[:-200])
    assert seen.fault
    assert seen.content is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "empty (0 bytes)"),
        (b"", "empty (0 bytes)"),
        (b"<html>404 Not Found</html>", "no image in a known format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image in a known format"),
        (encoded(1)[:4], "no image in a known format"),
        (encoded(1)[:20], "does not decode"),
    ],
)
def test_what_is_no_image_says_so(data: bytes | None, fault: str) -> None:
    assert look(data).fault.startswith(fault)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_a_decompression_bomb_is_not_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between once and twice its limit Pillow only warns; beyond, it raises."""
    bomb = saved(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    assert side**2 > MAX_PIXELS
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert f"more than {MAX_PIXELS:,}" in look(bomb).fault


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_no_bytes_make_it_raise(seed: int, format: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(1, format, size=16))
    for position in rng.integers(0, len(data), 12):
        data[position] = rng.integers(0, 256)
    seen = look(bytes(data))
    assert (seen.fault is None) == (seen.content is not None)


def test_one_picture_is_one_however_it_is_saved() -> None:
    image = Image.open(io.BytesIO(encoded(1))).convert("RGB")
    grey = image.convert("L")
    same = {look(saved(image, format)).content for format in ("PNG", "BMP", "TIFF")}
    assert len(same) == 1
    assert look(saved(grey)).content == look(saved(grey.convert("RGBA"))).content
    assert look(saved(grey)).content not in same


def test_other_pictures_are_others() -> None:
    pixels = np.zeros((6, 8), np.uint8)
    other = pixels.copy()
    other[5, 7] = 1
    turned = pixels.reshape(8, 6)
    assert len({look(saved(Image.fromarray(p))).content for p in (pixels, other, turned)}) == 3


def test_deep_images_are_told_apart_though_pillow_makes_both_white() -> None:
    deep = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (1000, 60000)]
    assert {image.convert("RGB").tobytes() for image in deep} == {b"\xff" * 48}
    seen = [look(saved(image)) for image in deep]
    assert [s.mode for s in seen] == ["I;16", "I;16"]
    assert seen[0].content != seen[1].content


def test_a_picture_and_its_turned_copy_with_a_tag_are_one() -> None:
    """The model sees both upright: the same image, though no stored pixel is where it was."""
    image = Image.open(io.BytesIO(encoded(1))).resize((12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = look(saved(image.transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert (turned.width, turned.height) == (8, 12)
    assert turned.content == look(saved(image)).content


def test_what_is_under_transparent_pixels_makes_no_difference() -> None:
    clear = [Image.new("RGBA", (4, 4), (value, 0, 0, 0)) for value in (0, 200)]
    assert len({look(saved(image)).content for image in clear}) == 1

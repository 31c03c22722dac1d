"""A close look at one image: broken bytes, hostile bytes, modes, sameness."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.shared.rows.images import MAX_PIXELS, prepare
from components.validate.image_probe import look
from components.validate.perceptual_hash import perceptual_hashes
from tests.support.raw_folder import encoded, photograph, saved

# pytest undoes the filters that prepare() sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True, scope="module")
def decoders() -> None:
    prepare()


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


def apart(a: bytes | None, b: bytes | None) -> int:
    """Bits in which the perceptual hashes differ."""
    first, second = (np.frombuffer(one or b"", np.uint8) for one in perceptual_hashes([a or b"", b or b""]))
    return int(np.bitwise_count(first ^ second).sum())


@pytest.mark.parametrize("size", [(300, 200), (256, 256), (128, 131), (1000, 707), (127, 400)])
def test_a_quick_look_sees_what_a_full_one_sees(size: tuple[int, int]) -> None:
    data = saved(photograph(0, *size), "JPEG", quality=90)
    quick, full = look(data, reduce=True), look(data)
    assert quick.reduced is (min(size) >= 128)
    assert not full.reduced
    assert (quick.width, quick.height, quick.mode, quick.format) == (full.width, full.height, full.mode, full.format)
    assert (quick.content == full.content) is not quick.reduced
    assert apart(quick.thumbnail, full.thumbnail) <= 10


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.9])
def test_a_quick_look_finds_a_resized_copy_as_a_full_one_does(factor: float) -> None:
    picture = photograph(1, 900, 700)
    smaller = picture.resize((int(900 * factor), int(700 * factor)), Image.Resampling.LANCZOS)
    pair = [look(saved(image, "JPEG", quality=90), reduce=True).thumbnail for image in (picture, smaller)]
    assert apart(*pair) <= 10
    assert apart(pair[0], look(saved(photograph(2, 900, 700), "JPEG"), reduce=True).thumbnail) > 40


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (photograph(0), {"format": "PNG"}),
        (photograph(0).convert("CMYK"), {"format": "JPEG"}),
        (photograph(0, 100, 90), {"format": "JPEG"}),
    ],
)
def test_what_cannot_be_reduced_is_looked_at_in_full(image: Image.Image, options: dict[str, str]) -> None:
    data = saved(image, **options)
    assert look(data, reduce=True) == look(data)


def test_a_picture_that_is_to_be_turned_is_looked_at_in_full() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photograph(0), "JPEG", exif=exif)
    assert look(data, reduce=True) == look(data)
    exif[0x0112] = 1
    assert look(saved(photograph(0), "JPEG", exif=exif), reduce=True).reduced


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_a_quick_look_finds_the_faults_that_a_full_one_finds(seed: int, progressive: bool, cut: bool) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(saved(photograph(3, 160, 130), "JPEG", progressive=progressive, quality=80))
    if cut:
        del data[rng.integers(0, len(data)) :]
    else:
        for position in rng.integers(0, len(data), 6):
            data[position] = rng.integers(0, 256)
    assert look(bytes(data), reduce=True).fault == look(bytes(data)).fault

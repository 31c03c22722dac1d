"""Probing one image: damaged and hostile bytes, modes, and content hashes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.shared.rows.images import MAX_PIXELS, load_decoders
from components.validate.image_probe import probe_image
from components.validate.perceptual_hash import perceptual_hashes
from tests.support.raw_folder import encoded, photograph, saved

# pytest undoes the filters that load_decoders() sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True, scope="module")
def decoders() -> None:
    load_decoders()


def fault_of(data: bytes | None) -> str:
    fault = probe_image(data).fault
    assert fault is not None
    return fault


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_intact_images_decode(format: str) -> None:
    probe = probe_image(encoded(1, format, size=20))
    assert (probe.width, probe.height, probe.format, probe.fault) == (20, 20, format, None)
    assert probe.content


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_images_do_not_decode(format: str) -> None:
    probe = probe_image(encoded(1, format, size=64)[:-200])
    assert probe.fault
    assert probe.content is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "empty (0 bytes)"),
        (b"", "empty (0 bytes)"),
        (b"<html>404 Not Found</html>", "not an image in a known format (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image in a known format"),
        (encoded(1)[:4], "not an image in a known format"),
        (encoded(1)[:20], "does not decode"),
    ],
)
def test_data_that_is_not_an_image_is_reported(data: bytes | None, fault: str) -> None:
    assert fault_of(data).startswith(fault)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_decompression_bomb_is_not_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow only warns up to twice its limit; above that it raises."""
    bomb = saved(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    assert side**2 > MAX_PIXELS
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert f"more than {MAX_PIXELS:,}" in fault_of(bomb)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_damaged_bytes_never_raise(seed: int, format: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(1, format, size=16))
    for position in rng.integers(0, len(data), 12):
        data[position] = rng.integers(0, 256)
    probe = probe_image(bytes(data))
    assert (probe.fault is None) == (probe.content is not None)


def test_picture_has_the_same_hash_in_every_format() -> None:
    image = Image.open(io.BytesIO(encoded(1))).convert("RGB")
    grey = image.convert("L")
    hashes = {probe_image(saved(image, format)).content for format in ("PNG", "BMP", "TIFF")}
    assert len(hashes) == 1
    assert probe_image(saved(grey)).content == probe_image(saved(grey.convert("RGBA"))).content
    assert probe_image(saved(grey)).content not in hashes


def test_different_pictures_have_different_hashes() -> None:
    pixels = np.zeros((6, 8), np.uint8)
    other = pixels.copy()
    other[5, 7] = 1
    turned = pixels.reshape(8, 6)
    assert len({probe_image(saved(Image.fromarray(p))).content for p in (pixels, other, turned)}) == 3


def test_16_bit_images_have_different_hashes_though_pillow_converts_both_to_white() -> None:
    deep = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (1000, 60000)]
    assert {image.convert("RGB").tobytes() for image in deep} == {b"\xff" * 48}
    probes = [probe_image(saved(image)) for image in deep]
    assert [s.mode for s in probes] == ["I;16", "I;16"]
    assert probes[0].content != probes[1].content


def test_rotated_copy_with_exif_orientation_has_the_same_hash() -> None:
    """The model gets both upright, so they are the same image, though no stored pixel is at the same position."""
    image = Image.open(io.BytesIO(encoded(1))).resize((12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = probe_image(saved(image.transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert (turned.width, turned.height) == (8, 12)
    assert turned.content == probe_image(saved(image)).content


def test_colour_of_transparent_pixels_does_not_matter() -> None:
    clear = [Image.new("RGBA", (4, 4), (value, 0, 0, 0)) for value in (0, 200)]
    assert len({probe_image(saved(image)).content for image in clear}) == 1


def distance(a: bytes | None, b: bytes | None) -> int:
    """Number of bits in which the perceptual hashes differ."""
    first, second = (np.frombuffer(one or b"", np.uint8) for one in perceptual_hashes([a or b"", b or b""]))
    return int(np.bitwise_count(first ^ second).sum())


@pytest.mark.parametrize("size", [(300, 200), (256, 256), (128, 131), (1000, 707), (127, 400)])
def test_reduced_probe_gives_the_same_description(size: tuple[int, int]) -> None:
    data = saved(photograph(0, *size), "JPEG", quality=90)
    reduced, full = probe_image(data, reduce=True), probe_image(data)
    assert reduced.reduced is (min(size) >= 128)
    assert not full.reduced
    assert (reduced.width, reduced.height, reduced.mode, reduced.format) == (
        full.width,
        full.height,
        full.mode,
        full.format,
    )
    assert (reduced.content == full.content) is not reduced.reduced
    assert distance(reduced.thumbnail, full.thumbnail) <= 10


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.9])
def test_reduced_probe_finds_a_resized_copy(factor: float) -> None:
    picture = photograph(1, 900, 700)
    smaller = picture.resize((int(900 * factor), int(700 * factor)), Image.Resampling.LANCZOS)
    pair = [probe_image(saved(image, "JPEG", quality=90), reduce=True).thumbnail for image in (picture, smaller)]
    assert distance(*pair) <= 10
    assert distance(pair[0], probe_image(saved(photograph(2, 900, 700), "JPEG"), reduce=True).thumbnail) > 40


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (photograph(0), {"format": "PNG"}),
        (photograph(0).convert("CMYK"), {"format": "JPEG"}),
        (photograph(0, 100, 90), {"format": "JPEG"}),
    ],
)
def test_image_that_cannot_be_reduced_is_decoded_in_full(image: Image.Image, options: dict[str, str]) -> None:
    data = saved(image, **options)
    assert probe_image(data, reduce=True) == probe_image(data)


def test_image_with_exif_orientation_is_decoded_in_full() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photograph(0), "JPEG", exif=exif)
    assert probe_image(data, reduce=True) == probe_image(data)
    exif[0x0112] = 1
    assert probe_image(saved(photograph(0), "JPEG", exif=exif), reduce=True).reduced


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_reduced_probe_reports_the_same_errors(seed: int, progressive: bool, cut: bool) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(saved(photograph(3, 160, 130), "JPEG", progressive=progressive, quality=80))
    if cut:
        del data[rng.integers(0, len(data)) :]
    else:
        for position in rng.integers(0, len(data), 6):
            data[position] = rng.integers(0, 256)
    assert probe_image(bytes(data), reduce=True).fault == probe_image(bytes(data)).fault

"""Augmentation: nothing is changed by default, the generator decides, and changes stay within the settings."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.settings import Augment
from components.shared.training.augment import augment

NO_CHANGES = {"rotate": 0, "shift": 0, "zoom": 0, "light": 0, "noise": 0}
ALL_CHANGES = {"rotate": 5, "shift": 0.05, "zoom": 0.05, "light": 0.2, "noise": 0.05}


def changes(**largest: float) -> Augment:
    return Augment.model_validate({**NO_CHANGES, **largest})


class LargestChanges:
    """A generator that always draws the largest change."""

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        """The upper end."""
        return high if size is None else np.full(size, high)


def dot(size: tuple[int, int] = (64, 48), at: tuple[float, float] = (32, 24)) -> Image.Image:
    """A soft white dot on black; `at` counts pixels, the first one from 0 to 1."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5 - at[0], np.arange(size[1]) + 0.5 - at[1])
    grey = (255 * np.exp(-0.5 * (x**2 + y**2) / 2.5**2)).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def centroid(image: Image.Image) -> np.ndarray:
    """Where the dot is: (x, y)."""
    grey = np.asarray(image.convert("L"), np.float64)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    return np.array([(grey * x).sum(), (grey * y).sum()]) / grey.sum()


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8))


def test_settings_of_zero_change_nothing() -> None:
    image = picture()
    assert augment(image, changes(), np.random.default_rng(0)).tobytes() == image.tobytes()


@pytest.mark.parametrize("only", ALL_CHANGES)
def test_each_setting_changes_the_picture_and_keeps_its_size(only: str) -> None:
    image = picture()
    changed = augment(image, changes(**{only: ALL_CHANGES[only]}), np.random.default_rng(0))
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert changed.tobytes() != image.tobytes()
    assert image.tobytes() == picture().tobytes()  # the original is unchanged


def test_the_generator_decides_all_changes() -> None:
    settings = changes(**ALL_CHANGES)
    first, second, other = (augment(picture(), settings, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == second.tobytes() != other.tobytes()


def test_a_shift_moves_by_its_share_of_each_side() -> None:
    moved = augment(dot(), changes(shift=0.125), LargestChanges())  # type: ignore[arg-type]
    np.testing.assert_allclose(centroid(moved) - centroid(dot()), [8, 6], atol=0.02)


def test_shifts_stay_within_the_setting_and_go_in_all_directions() -> None:
    start = centroid(dot())
    moves = np.array(
        [centroid(augment(dot(), changes(shift=0.1), np.random.default_rng(k))) - start for k in range(60)]
    )
    assert (np.abs(moves) <= np.array([6.4, 4.8]) + 0.05).all()
    assert (np.abs(moves).max(axis=0) > np.array([5.0, 3.7])).all()
    assert len({(x > 0, y > 0) for x, y in moves}) == 4


def test_a_rotation_turns_about_the_centre_by_the_angle() -> None:
    """A dot right of the centre moves by 30 degrees around it, and a dot in the centre stays."""
    turned = centroid(augment(dot(at=(48, 24)), changes(rotate=30), LargestChanges())) - [32, 24]  # type: ignore[arg-type]
    assert np.hypot(*turned) == pytest.approx(16, abs=0.1)
    assert abs(np.degrees(np.arctan2(turned[1], turned[0]))) == pytest.approx(30, abs=0.5)
    unmoved = centroid(augment(dot(), changes(rotate=30), LargestChanges()))  # type: ignore[arg-type]
    np.testing.assert_allclose(unmoved, [32, 24], atol=0.05)


def test_a_zoom_moves_points_away_from_the_centre() -> None:
    zoomed = centroid(augment(dot(at=(42, 18)), changes(zoom=0.2), LargestChanges())) - [32, 24]  # type: ignore[arg-type]
    np.testing.assert_allclose(zoomed, [12, -7.2], atol=0.1)


def test_new_areas_are_filled_with_the_colour_of_the_border() -> None:
    plain = Image.new("RGB", (32, 32), (200, 120, 40))
    settings = changes(rotate=45, shift=0.3, zoom=0.3)
    for seed in range(5):
        moved = augment(plain, settings, np.random.default_rng(seed))
        assert np.abs(np.asarray(moved, int) - [200, 120, 40]).max() <= 1


def test_light_scales_brightness_and_contrast() -> None:
    """Grey 50 and 150: the middle of 100 goes to 120, the distance of 50 from it to 60."""
    halves = Image.fromarray(np.repeat([[50] * 8 + [150] * 8], 16, axis=0).astype(np.uint8)).convert("RGB")
    lit = np.asarray(augment(halves, changes(light=0.2), LargestChanges()))  # type: ignore[arg-type]
    assert np.unique(lit[:, :8]).tolist() == [60]
    assert np.unique(lit[:, 8:]).tolist() == [180]


def test_noise_is_grey_and_stays_within_the_setting() -> None:
    plain = Image.new("RGB", (64, 64), (128, 128, 128))
    spread = []
    for seed in range(20):
        noisy = np.asarray(augment(plain, changes(noise=0.1), np.random.default_rng(seed)), float)
        assert (noisy[..., 0] == noisy[..., 1]).all()
        spread.append(noisy.std())
    assert max(spread) < 0.1 * 255 * 1.05
    assert max(spread) > 0.07 * 255
    assert min(spread) < 0.03 * 255

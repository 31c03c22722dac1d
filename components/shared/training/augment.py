"""Augmentation that does not change what a picture shows: small moves, brightness and contrast, noise."""

import math

import numpy as np
from PIL import Image

from components.settings import Augment


def augment(image: Image.Image, settings: Augment, rng: np.random.Generator) -> Image.Image:
    """Returns a changed copy of an RGB image, of the same size.

    Args:
        settings: the largest changes; 0 switches one off.
        rng: decides all changes.
    """
    image = _move(image, settings, rng)
    if settings.light == settings.noise == 0:
        return image
    gain, shift = 1 + rng.uniform(-1, 1, 2) * settings.light
    pixels = np.array(image, np.float32)
    middle = float(pixels.mean())
    pixels -= middle
    pixels *= gain
    pixels += middle * shift
    if settings.noise:
        strength = 255 * settings.noise * rng.random()
        pixels += (strength * rng.standard_normal(pixels.shape[:2], np.float32))[..., None]
    pixels += 0.5
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _move(image: Image.Image, settings: Augment, rng: np.random.Generator) -> Image.Image:
    """Rotates, zooms and shifts in one resampling; fills what lay outside with the median colour of the border."""
    turn = math.radians(rng.uniform(-1, 1) * settings.rotate)
    zoom = 1 + rng.uniform(-1, 1) * settings.zoom
    dx, dy = rng.uniform(-1, 1, 2) * settings.shift * np.array(image.size)
    if not (settings.rotate or settings.zoom or settings.shift):
        return image
    cx, cy = (side / 2 for side in image.size)
    a, b = math.cos(turn) / zoom, math.sin(turn) / zoom
    matrix = (a, b, cx - a * (cx + dx) - b * (cy + dy), -b, a, cy + b * (cx + dx) - a * (cy + dy))
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    half = len(border) // 2
    fill = tuple(int(v) for v in np.partition(border, half, axis=0)[half])  # np.median takes three times as long
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)

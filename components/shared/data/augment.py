"""Changes of a picture that keep its reading true: small moves, light, grain."""

import math

import numpy as np
from PIL import Image

from components.settings import Augment


def augment(image: Image.Image, settings: Augment, rng: np.random.Generator) -> Image.Image:
    """A changed copy of an RGB image, the same size. `rng` decides everything; a setting of 0 leaves its part alone."""
    image = _move(image, settings, rng)
    if settings.light == settings.noise == 0:
        return image
    gain, shift = 1 + rng.uniform(-1, 1, 2) * settings.light
    pixels = np.asarray(image, np.float32)
    middle = float(pixels.mean())
    pixels = (pixels - middle) * gain + middle * shift
    if settings.noise:
        pixels = pixels + rng.normal(0, 255 * settings.noise * rng.random(), pixels.shape[:2])[..., None]
    return Image.fromarray((np.clip(pixels, 0, 255) + 0.5).astype(np.uint8))


def _move(image: Image.Image, settings: Augment, rng: np.random.Generator) -> Image.Image:
    """Turn, zoom and shift in one resampling; what comes in from outside has the border's median colour."""
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
    fill = tuple(int(v) for v in np.median(border, axis=0))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)

"""What happens to pictures: blur, few pixels, grain, fading, grey, negative, tint, crop, turn.

With it, how a picture is recorded varies independently of what it shows.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

Pixels = np.ndarray


def wear(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    """One or two random changes of a picture, uint8 (S, S, 3) to the same."""
    chosen = dice.choice(len(CHANGES), size=1 + int(dice.random() < 0.35), replace=False)
    for index in chosen:
        pixels = CHANGES[index](dice, pixels)
    return pixels


def _clip(values: np.ndarray) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


def _blur(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(dice.uniform(0.6, 2.2)))
    return np.asarray(image)


def _few_pixels(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    size, small = len(pixels), int(dice.integers(14, 34))
    image = Image.fromarray(pixels).resize((small, small), Image.Resampling.BILINEAR)
    way = Image.Resampling.BICUBIC if dice.random() < 0.8 else Image.Resampling.NEAREST
    return np.asarray(image.resize((size, size), way))


def _grain(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    colour = 3 if dice.random() < 0.6 else 1
    noise = dice.normal(0, dice.uniform(4, 22), (*pixels.shape[:2], colour))
    return _clip(pixels + noise)


def _fade(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    middle, keep = dice.uniform(40, 215), dice.uniform(0.3, 0.7)
    return _clip(middle + (pixels - middle) * keep)


def _light(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    gain = dice.uniform(0.35, 0.75) if dice.random() < 0.7 else dice.uniform(1.2, 1.6)
    return _clip(pixels * gain)


def _grey(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    return _clip(np.repeat(luma[..., None], 3, axis=2))


def _negative(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    return 255 - pixels


def _tint(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    return _clip(pixels * dice.uniform(0.45, 1.15, 3))


def _crop(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    size = len(pixels)
    edge = int(size * dice.uniform(0.45, 0.85))
    top, left = dice.integers(0, size - edge + 1, 2)
    part = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def _turn(dice: np.random.Generator, pixels: Pixels) -> Pixels:
    return np.rot90(pixels, int(dice.integers(1, 4))).copy()


CHANGES = (_blur, _few_pixels, _grain, _fade, _light, _grey, _negative, _tint, _crop, _turn)

"""What can be read off the pixels of any picture, and said in words, whatever it shows.

Each measure has a few levels; a picture whose value is near a border between two levels is not
described by that measure, so that what is said is true.

Shapes: S side, pixels uint8 (S, S, 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
# Hues in sixths of the circle, borders between the names.
HUES = (
    (0.35, "red"),
    (0.75, "orange"),
    (1.3, "yellow"),
    (2.6, "green"),
    (3.4, "turquoise"),
    (4.3, "blue"),
    (5.2, "purple"),
    (5.75, "pink"),
    (6.0, "red"),
)


class Look:
    """Numbers behind the words: computed once for a picture."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.rgb = pixels.astype(np.float64) / 255
        self.grey = self.rgb @ LUMA
        self.chroma = self.rgb.max(axis=2) - self.rgb.min(axis=2)
        step_x = np.abs(np.diff(self.grey, axis=1))[:-1]
        step_y = np.abs(np.diff(self.grey, axis=0))[:, :-1]
        self.slope = np.hypot(step_x, step_y)
        side = len(pixels)
        edge = side // 10
        self.frame = np.zeros((side, side), bool)
        self.frame[:edge] = self.frame[-edge:] = True
        self.frame[:, :edge] = self.frame[:, -edge:] = True

    def hue(self, where: np.ndarray) -> str | None:
        """The name of the one hue that prevails among pixels (n, 3); None if there is none."""
        high, low = where.max(axis=1), where.min(axis=1)
        vivid = (high - low) > 0.15
        if vivid.mean() < 0.35:
            return None
        r, g, b = where[vivid].T
        span = np.maximum((high - low)[vivid], 1e-6)
        top = where[vivid].argmax(axis=1)
        angle = np.choose(top, [(g - b) / span % 6, (b - r) / span + 2, (r - g) / span + 4])
        names = np.array([name for _, name in HUES])[
            np.minimum(np.searchsorted([edge for edge, _ in HUES], angle), len(HUES) - 1)
        ]
        found, counts = np.unique(names, return_counts=True)
        best = counts.argmax()
        return str(found[best]) if counts[best] > 0.6 * vivid.sum() else None


def _level(value: float, *levels: tuple[float, float, str]) -> str | None:
    """The word of the interval that holds `value`; the gaps between intervals have none."""
    return next((word for low, high, word in levels if low <= value < high), None)


def colour(look: Look) -> str | None:
    """How much colour there is."""
    return _level(
        float(look.chroma.mean()),
        (0, 0.025, "none"),
        (0.04, 0.11, "pale"),
        (0.14, 0.27, "medium"),
        (0.32, 9, "strong"),
    )


def hue(look: Look) -> str | None:
    """The prevailing hue, `many` where hues are strong and mixed."""
    found = look.hue(look.rgb.reshape(-1, 3))
    if found is None and look.chroma.mean() > 0.3:
        return "many"
    return found


def brightness(look: Look) -> str | None:
    """How light the whole picture is."""
    return _level(
        float(look.grey.mean()), (0, 0.27, "dark"), (0.36, 0.58, "medium"), (0.68, 2, "bright")
    )


def contrast(look: Look) -> str | None:
    """How far light and dark are apart."""
    return _level(
        float(look.grey.std()), (0, 0.11, "low"), (0.15, 0.22, "medium"), (0.27, 9, "high")
    )


def ground(look: Look) -> str | None:
    """What the picture's frame looks like: plain in one colour, shaded, or full of things."""
    frame = look.rgb[look.frame]
    away = np.abs(frame - np.median(frame, axis=0)).max(axis=1)
    most = away <= np.quantile(away, 0.65)  # a thing may reach over the frame
    spread = float(away[most].max())
    if spread < 0.09:
        name = look.hue(frame[most])
        if name is not None:
            return f"plain {name}"
        word = _level(
            float(np.median(look.grey[look.frame][most])),
            (0, 0.08, "black"),
            (0.1, 0.32, "dark grey"),
            (0.38, 0.75, "grey"),
            (0.78, 0.9, "light grey"),
            (0.93, 2, "white"),
        )
        return None if word is None else f"plain {word}"
    return _level(spread, (0.11, 0.17, "shaded"), (0.2, 9, "busy"))


def layout(look: Look) -> str | None:
    """One thing in the middle, the same all over, or brighter above."""
    side = len(look.grey)
    cells = look.slope[: side // 8 * 8 - 8, : side // 8 * 8 - 8]
    n = len(cells) // 8
    energy = cells.reshape(n, 8, n, 8).mean(axis=(1, 3))
    middle = energy[n // 4 : n - n // 4, n // 4 : n - n // 4].mean()
    border = np.concatenate([energy[0], energy[-1], energy[:, 0], energy[:, -1]]).mean()
    if middle > 3 * border:
        return "centred"
    if energy.std() < 0.35 * energy.mean() and energy.mean() > 0.02:
        return "even"
    drop = look.grey[: side // 3].mean() - look.grey[-side // 3 :].mean()
    return "lit above" if drop > 0.22 else ("lit below" if drop < -0.25 else None)


def flatness(look: Look) -> str | None:
    """Large areas without anything in them, or detail everywhere."""
    return _level(
        float((look.slope < 0.03).mean()), (0, 0.2, "detail"), (0.3, 0.55, "some"), (0.7, 2, "flat")
    )


def sharpness(look: Look) -> str | None:
    """How hard the hardest edges are."""
    top = float(np.quantile(look.slope, 0.985))
    return _level(top, (0, 0.1, "blurred"), (0.14, 0.26, "soft"), (0.34, 9, "sharp"))


def grain(look: Look) -> str | None:
    """Noise in the quietest parts."""
    g = look.grey
    rough = np.abs(4 * g[1:-1, 1:-1] - g[2:, 1:-1] - g[:-2, 1:-1] - g[1:-1, 2:] - g[1:-1, :-2])
    return _level(
        float(np.quantile(rough, 0.3)),
        (0, 0.004, "clean"),
        (0.012, 0.025, "some"),
        (0.04, 9, "grainy"),
    )


MEASURES: dict[str, Callable[[Look], str | None]] = {
    "colour": colour,
    "hue": hue,
    "brightness": brightness,
    "contrast": contrast,
    "ground": ground,
    "layout": layout,
    "flatness": flatness,
    "sharpness": sharpness,
    "grain": grain,
}


def measure(pixels: np.ndarray) -> dict[str, str]:
    """Every measure that is clear for this picture, by name."""
    look = Look(pixels)
    found = {name: function(look) for name, function in MEASURES.items()}
    return {name: word for name, word in found.items() if word is not None}

"""Glyphs: twenty pictograms from eight fonts (all shipped with matplotlib), printed at an angle."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    Dice,
    blend,
    camera,
    contrasting,
    finish,
    noise,
    ramp,
)
from archipelago.pipeline.streams.atlas.scene import Request, Scene

BIG = 2 * CANVAS
SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
MONO = (*SANS, "DejaVuSansMono", "DejaVuSansMono-Bold")
WIDE = (*MONO, "STIXGeneral")
GLYPHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "airplane": ("\u2708", MONO),
    "ampersand": ("&", (*WIDE, "STIXGeneralBol")),
    "anchor": ("\u2693", MONO),
    "cat": ("\U0001f431", SANS),
    "chess queen": ("\u2655", MONO),
    "diamond": ("\u2666", WIDE),
    "dice": ("\u2680", MONO),
    "envelope": ("\u2709", WIDE),
    "heart": ("\u2665", WIDE),
    "keyboard": ("\u2328", MONO),
    "peace symbol": ("\u262e", MONO),
    "playing card": ("\U0001f0a1", SANS),
    "pointing hand": ("\u261e", MONO),
    "sad face": ("\u2639", WIDE),
    "scissors": ("\u2702", WIDE),
    "snowflake": ("\u2744", MONO),
    "snowman": ("\u2603", MONO),
    "star": ("\u2605", WIDE),
    "telephone": ("\u260e", WIDE),
    "umbrella": ("\u2602", MONO),
}


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's own folder."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph(name: str, character: str) -> Image.Image:
    """A character amid a mask, mode L, BIG pixels wide, the longer edge 160 pixels or so."""
    left, top, right, bottom = font(name, 100).getbbox(character, anchor="mm")
    mask = Image.new("L", (BIG, BIG))
    size = 100 * 160 // int(max(right - left, bottom - top))
    left, top, right, bottom = font(name, size).getbbox(character, anchor="mm")
    middle = (BIG // 2 - int(left + right) // 2, BIG // 2 - int(top + bottom) // 2)
    ImageDraw.Draw(mask).text(middle, character, 255, font(name, size), anchor="mm")
    return mask


def paint(request: Request, dice: Dice) -> np.ndarray:
    """One pictogram in a strong colour on a pale, dark or mottled card."""
    character, fonts = tuple(GLYPHS.values())[request.label]
    mask = glyph(dice.pick(fonts), character)
    seen = camera(dice, mask, turn=30, zoom=(100, 135), shift=12, tilt=100).reduce(2)
    base = dice.hue((0, 130), (50, 255))
    ground = ramp(noise(dice, dice.between(2, 5)), dice.near(base, 16), dice.near(base, 16))
    return finish(dice, blend(ground, contrasting(dice, base, 100), np.asarray(seen)), grain=10)


SCENE = Scene(
    name="glyphs",
    classes=tuple(GLYPHS),
    templates=("a symbol of a {}.", "a {}.", "an icon of a {}."),
    paint=paint,
    source="rendered by archipelago with the DejaVu and STIX fonts that matplotlib ships",
)

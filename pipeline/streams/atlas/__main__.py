"""Paint a contact sheet of the atlas, one band a domain:

python -m archipelago.pipeline.streams.atlas docs/atlas.png [--seed 0]
"""

from __future__ import annotations

from PIL import Image, ImageFont

from archipelago.pipeline.streams.atlas import SCENES
from archipelago.pipeline.streams.atlas.glyphs import font
from archipelago.pipeline.streams.atlas.paper import INK, TILE, blank, tile, write
from archipelago.pipeline.streams.atlas.scene import Scene

GAP = 14
LABEL = 34
MARGIN = 40
SIDE = 214  # width of the column that names the domain
SHOWN = 9  # classes a row
ROWS = 2  # images of each class, one below the other
MUTED = (112, 118, 128)


def _shown(scene: Scene) -> list[int]:
    """Labels spread evenly over the class list."""
    count = len(scene.classes)
    return [k * count // SHOWN for k in range(min(SHOWN, count))]


def _fitting(text: str, width: int) -> ImageFont.FreeTypeFont:
    """The largest of a few sizes at which `text` is no wider than `width`."""
    fonts = [font("DejaVuSans", size) for size in (19, 17, 15, 13)]
    return next((f for f in fonts if f.getlength(text) <= width), fonts[-1])


def sheet(seed: int) -> Image.Image:
    """Every domain with nine of its classes, two test images each, and their names."""
    band = ROWS * TILE + (ROWS - 1) * 4 + LABEL + 22
    width = 2 * MARGIN + SIDE + SHOWN * (TILE + GAP) - GAP
    page, draw = blank(width, 2 * MARGIN + len(SCENES) * band - 22)
    for place, (name, scene) in enumerate(SCENES.items()):
        top = MARGIN + place * band
        draw.text((MARGIN, top + 88), name, INK, font("DejaVuSans-Bold", 32))
        draw.text(
            (MARGIN, top + 132), f"{len(scene.classes)} classes", MUTED, font("DejaVuSans", 20)
        )
        for column, label in enumerate(_shown(scene)):
            left = MARGIN + SIDE + column * (TILE + GAP)
            for row in range(ROWS):
                pixels, _ = scene.render(seed, "test", row * len(scene.classes) + label)
                page.paste(tile(pixels), (left, top + row * (TILE + 4)))
            text = scene.classes[label]
            below = top + ROWS * TILE + (ROWS - 1) * 4 + LABEL // 2 + 2
            draw.text(
                (left + TILE // 2, below), text, INK, _fitting(text, TILE + GAP - 2), anchor="mm"
            )
    return page


if __name__ == "__main__":
    write("Paint a contact sheet of the atlas.", sheet)

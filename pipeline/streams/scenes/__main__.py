"""Paint some scenes beside their five targets:

python -m archipelago.pipeline.streams.scenes docs/scenes.png [--seed 0]
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from archipelago.pipeline.streams.atlas.glyphs import font
from archipelago.pipeline.streams.atlas.paper import INK, TILE, blank, tile, write
from archipelago.pipeline.streams.scenes import render
from archipelago.pipeline.streams.scenes.things import CLASSES, PARTS

GAP = 6
MARGIN = 24
HEADER = 34
FOOTER = 66
SHOWN = (5, 9, 12, 0, 16)  # test images
COLUMNS = ("image", "semseg", "parts", "saliency", "normals", "edges")
PALETTE = np.array(
    [
        (38, 40, 46),
        (230, 75, 60),
        (240, 170, 60),
        (90, 170, 235),
        (150, 105, 70),
        (130, 100, 200),
        (225, 215, 150),
        (90, 180, 90),
    ],
    np.uint8,
)


def tiles(seed: int, index: int) -> list[np.ndarray]:
    """An image and its targets as colours, uint8 (SIZE, SIZE, 3) each."""
    image, targets = render(seed, "test", index)
    white = np.full(3, 235, np.uint8)
    normals = np.clip(targets["normals"].astype(np.int16) + 128, 0, 255).astype(np.uint8)
    flags = [
        PALETTE[0] + targets[n][..., None] * (white - PALETTE[0]) for n in ("saliency", "edges")
    ]
    return [
        image,
        PALETTE[targets["semseg"]],
        PALETTE[targets["parts"]],
        flags[0],
        normals,
        flags[1],
    ]


def sheet(seed: int) -> Image.Image:
    """Scenes below one another, their targets beside them, and what the colours mean."""
    width = 2 * MARGIN + len(COLUMNS) * (TILE + GAP) - GAP
    height = 2 * MARGIN + HEADER + len(SHOWN) * (TILE + GAP) + FOOTER
    page, draw = blank(width, height)
    for column, name in enumerate(COLUMNS):
        left = MARGIN + column * (TILE + GAP)
        draw.text((left + TILE // 2, MARGIN + 12), name, INK, font("DejaVuSans-Bold", 17), "mm")
        for row, index in enumerate(SHOWN):
            shown = tile(tiles(seed, index)[column], smooth=column == 0)
            page.paste(shown, (left, MARGIN + HEADER + row * (TILE + GAP)))
    top = height - MARGIN - FOOTER + 20
    for line, (title, names) in enumerate((("semseg", CLASSES), ("parts", PARTS))):
        draw.text((MARGIN, top + 26 * line), title, INK, font("DejaVuSans-Bold", 14), "lm")
        for number, name in enumerate(names):
            left = MARGIN + 66 + number * 91
            colour = tuple(int(v) for v in PALETTE[number])
            draw.rectangle((left, top - 6 + 26 * line, left + 11, top + 5 + 26 * line), colour)
            draw.text((left + 16, top + 26 * line), name, INK, font("DejaVuSans", 12), "lm")
    return page


if __name__ == "__main__":
    write("Paint scenes beside their targets.", sheet)

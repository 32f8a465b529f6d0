"""What contact sheets share: paper, tiles and the program that writes one."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from archipelago.pipeline.streams.atlas.canvas import SIZE

TILE = 2 * SIZE  # side of an image on paper
BITS = 5  # a channel: halves the file, and the grain hides the steps
PAPER, INK = (252, 251, 248), (32, 36, 44)

log = logging.getLogger(__name__)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty page and what draws on it."""
    page = Image.new("RGB", (width, height), PAPER)
    return page, ImageDraw.Draw(page)


def tile(pixels: np.ndarray, smooth: bool = True) -> Image.Image:
    """An image at the size of a tile; targets are not smoothed."""
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((TILE, TILE), how)


def write(purpose: str, sheet: Callable[[int], Image.Image]) -> None:
    """A program: write the sheet of `--seed` to the path on the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    page = ImageOps.posterize(sheet(arguments.seed), BITS)
    page.save(arguments.path, optimize=True)
    log.info("%s: %d x %d pixels", arguments.path, *page.size)

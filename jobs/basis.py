"""Make the basis of a backbone: what compact features are, from many unrelated images.

    python jobs/basis.py /data/images /data/clip/basis.safetensors backbone=local-dir \
        backbone.name=local-dir:/data/clip

The first word is a folder of parquet files with an `image` column (bytes, or a struct with
bytes), the second the file to write: beside a backbone's weights it is found by itself, elsewhere
name it in `backbone.basis`. The images should be of many kinds, and of no stream.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.closedform import make_basis
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import EXIT_DONE, UserError
from archipelago.pipeline.identifiers.basis import save_basis
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.model.kernels import Kernels, resolve_device
from archipelago.pipeline.streams.decode import decode, fit

log = logging.getLogger("archipelago")
PER_FILE = 1500  # images taken from each file, so that no kind outweighs the others
BATCH = 128


@exit_codes("basis")
def main(arguments: Sequence[str]) -> int:
    """Compute and write a basis; returns the exit code."""
    if len(arguments) < 2:
        raise UserError("say where the images are and which file to write")
    images, target = Path(arguments[0]), Path(arguments[1])
    files = sorted(images.glob("*.parquet"))
    if not files:
        raise UserError(f"{images}: no parquet files there")
    settings = load(arguments[2:])
    kernels = Kernels(device=resolve_device("auto"))
    engine = Engine(EngineSpec(settings, str(target.parent.absolute()), kernels))
    batches = (
        engine.raw(batch)
        for file in track(files, console=Console(stderr=True))
        for batch in _batches(file, engine)
    )
    source = f"{len(files)} files of images"
    basis = make_basis(batches, settings.identifier.width, source, settings.identifier.depths)
    save_basis(target, basis)
    if (weak := basis.weakness()) is not None:
        log.warning("%s", weak)
    return EXIT_DONE


def _batches(file: Path, engine: Engine) -> list[np.ndarray]:
    settings = engine.settings
    column = pq.read_table(file, columns=["image"])["image"]
    rows = np.random.default_rng(0).permutation(len(column))[:PER_FILE]
    size = engine.backbone.image_size
    pixels = []
    for row in rows:
        value = column[int(row)].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        pixels.append(fit(decode(data, settings.stream.max_pixels), size))
    return [np.stack(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

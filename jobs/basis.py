"""Make the basis of a backbone: what compact features are, from many unrelated images.

    python jobs/basis.py images=/data/images to=/data/clip/basis.safetensors backbone=local-dir \
        backbone.name=local-dir:/data/clip

A file beside a backbone's weights is found by itself; elsewhere name it in `backbone.basis`. The
images should be of many kinds, and of no stream.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE

log = logging.getLogger("archipelago")


class Own(Words):
    """Where the images are and what is written."""

    images: str = Field(description="a folder of parquet files with an `image` column")
    to: str = Field(description="the file to write")


@exit_codes("basis")
def main(arguments: Sequence[str]) -> int:
    """Compute and write a basis; returns the exit code."""
    from archipelago.actors.basis import basis_of_files
    from archipelago.actors.logs import show_logs

    own, words = read_words(arguments, Own)
    show_logs()
    basis = basis_of_files(Path(own.images), Path(own.to), words)
    if (weak := basis.weakness()) is not None:
        log.warning("%s", weak)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

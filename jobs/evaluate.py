"""Measure a finished run on test images, its own or new ones.

    python jobs/evaluate.py run_dir=/data/runs/first
    python jobs/evaluate.py run_dir=/data/runs/first stream=folder stream.root=/data/new

Domains of the stream are matched with learned ones by name; others are answered as unseen, by their
class names. Prints a table and writes `evaluate/NAME.json` in the run folder.
Exit codes: 0 done, 2 a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE


class Own(Words):
    """What measuring takes beside settings of the stream."""

    run_dir: str = Field(description="the folder of a run, or its URI")
    manifest: int | None = Field(None, description="which version of the model; null = the newest")
    device: str = Field("auto", description="auto, cpu or cuda")
    name: str = Field("newest", description="of the file that is written")


@exit_codes("evaluate")
def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; returns the exit code."""
    from archipelago.actors.logs import show_logs
    from archipelago.actors.remeasuring import measure_run, remeasured_table

    own, words = read_words(arguments, Own)
    show_logs()
    found = measure_run(own.run_dir, words, own.manifest, own.device)
    found.write(f"evaluate/{own.name}.json")
    Console(highlight=False).print(remeasured_table(found))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

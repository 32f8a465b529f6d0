"""What each part of the method is worth, on a finished run: one switch changed at a time.

    python jobs/ablate.py run_dir=RUN

Nothing is learned: records are read, and stored features are answered anew. Prints a table, with
what each change gains over the run as it is (paired bootstrap over test images), and writes
`ablation.json` in the run folder.
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
    """Which run."""

    run_dir: str = Field(description="the folder of a finished run")


SETTINGS = False


@exit_codes("ablate")
def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; returns the exit code."""
    from archipelago.actors.ablating import ablate

    own, _ = read_words(arguments, Own, settings=False)
    console = Console(highlight=False)
    console.print(ablate(own.run_dir, console))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

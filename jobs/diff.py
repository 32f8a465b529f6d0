"""Two runs side by side: settings that differ, figures, and how sure the differences are.

    python jobs/diff.py a=/data/runs/first b=/data/runs/second

Where both were tested on the same images, differences have a 95 % interval of a paired bootstrap.
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
    """Which runs."""

    a: str = Field(description="the folder of one run")
    b: str = Field(description="the folder of the other")


SETTINGS = False


@exit_codes("diff")
def main(arguments: Sequence[str]) -> int:
    """Compare and print; returns the exit code."""
    from archipelago.pipeline.benchmark.difference import difference, tables

    own, _ = read_words(arguments, Own, settings=False)
    console = Console(highlight=False)
    for table in tables(difference(own.a, own.b)):
        console.print(table)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

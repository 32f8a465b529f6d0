"""The version of archipelago and of what results depend on.

python jobs/version.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.versions import versions
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE

SETTINGS = False


@exit_codes("version")
def main(arguments: Sequence[str]) -> int:
    """Print the versions; returns the exit code."""
    read_words(arguments, Words, settings=False)
    for name, version in versions().items():
        Console(highlight=False).print(f"{name} {version}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

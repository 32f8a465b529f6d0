"""Go back to an earlier version of a run's model, as a new generation.

    python jobs/rollback.py run_dir=/data/runs/first
    python jobs/rollback.py run_dir=/data/runs/first manifest=2

Without `manifest` it is the one that answered before. The endpoint stays there until something is
published on purpose. Needs an endpoint, as `publish` does.
Exit codes: 0 it answers, 1 failure, 2 refused.
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
    """What going back takes beside settings."""

    manifest: int | None = Field(None, ge=1, description="null = the one that answered before")


@exit_codes("rollback", "nothing was rolled back")
def main(arguments: Sequence[str]) -> int:
    """Roll back; returns the exit code."""
    from archipelago.actors.publishing import publish_manifest

    own, words = read_words(arguments, Own)
    told = publish_manifest(words, own.manifest, "rollback")
    Console(highlight=False).print(
        f"manifest {told['manifest']} answers: generation {told['generation']}"
    )
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

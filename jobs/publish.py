"""Let a version of a run's model answer: the newest, or any.

    python jobs/publish.py run_dir=/data/runs/first
    python jobs/publish.py run_dir=/data/runs/first manifest=2
    python jobs/publish.py run_dir=/data/runs/first serving.url=http://host:8000

Needs an endpoint of the run: in the Ray that runs here (`serving.name`), or at `serving.url` with
ARCHIPELAGO_ADMIN_TOKEN. It answers once all replicas are ready; a refusal leaves all as it was.
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
    """What publishing takes beside settings."""

    manifest: int | None = Field(None, ge=1, description="which version; null = the newest")


@exit_codes("publish", "the model was not published")
def main(arguments: Sequence[str]) -> int:
    """Publish; returns the exit code."""
    from archipelago.actors.publishing import publish_manifest

    own, words = read_words(arguments, Own)
    told = publish_manifest(words, own.manifest, "publish")
    Console(highlight=False).print(
        f"manifest {told['manifest']} answers: generation {told['generation']}"
    )
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

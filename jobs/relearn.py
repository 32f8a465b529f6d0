"""Forget a domain and learn it anew from its images as they are now, in one command.

    python jobs/relearn.py run_dir=/data/runs/first task=pets

For labels that were mended, or images that were added. The stream is read before anything is
forgotten; what answered before answers until the new function is there. Killed in between, the same
command, or the run's own, goes on.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the run is locked, 143 stopped.
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
    """What relearning takes beside settings of where it runs."""

    run_dir: str = Field(description="the folder of a run, or its URI")
    task: str = Field(description="the domain to learn anew")


@exit_codes("relearn", "the domain is not learned anew; the same command goes on")
def main(arguments: Sequence[str]) -> int:
    """Forget and learn; returns the exit code."""
    from archipelago.actors.learning import relearn
    from archipelago.pipeline.evaluation.console import summary

    own, words = read_words(arguments, Own)
    Console().print(summary(relearn(own.run_dir, own.task, words)))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

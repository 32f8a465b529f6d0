"""Forget a learned domain: a model version without it, and on request nothing left of it.

    python jobs/forget.py run_dir=/data/runs/first task=pets
    python jobs/forget.py run_dir=/data/runs/first task=pets erase=true
    python jobs/forget.py run_dir=/data/runs/first task=pets serving.url=http://host:8000

Groups that borrowed from it are mixed anew and measured on their test split before and after, or
learned again by the next `jobs/sequence.py` (`serving.dependents`). Logits of the other domains are
compared with what they were. With `serving.url` a running endpoint does all this, and answers once
all its replicas have forgotten; else the run folder is changed, and what serves it follows in
seconds.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the run is locked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, has_word, read_words
from archipelago.pipeline.errors import EXIT_DONE, UserError


class Own(Words):
    """What forgetting takes beside settings."""

    task: str = Field(description="the domain to forget")
    erase: bool = Field(False, description="true = its files and what is tracked of it go, too")


@exit_codes("forget", "the domain is not forgotten; the same command tries again")
def main(arguments: Sequence[str]) -> int:
    """Forget one domain; returns the exit code."""
    from archipelago.actors.arguments import load_settings
    from archipelago.actors.forgetting import forget, tell
    from archipelago.actors.logs import show_logs

    own, words = read_words(arguments, Own)
    settings = load_settings(words)
    if not has_word(words, "run_dir"):
        raise UserError("run_dir: say of which run, run_dir=DIR")
    show_logs()
    tell(forget(settings, own.task, own.erase), own.task, Console(highlight=False, soft_wrap=True))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

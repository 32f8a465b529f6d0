"""Compare identifiers on a finished run: accuracy, unseen images, speed, calls, what comes of it.

    python jobs/identify.py run_dir=RUN split=test
    python jobs/identify.py run_dir=RUN split=test identifier.model=/models/SmolVLM

Rows: the signature alone, the multimodal model alone in two scoring modes, the cascade of both, and
the oracle; `only=[prototype,mllm.likelihood]` takes some. Further words are settings of the section
`identifier`.
Writes `identify/test.json` and `identify/curve.png` in the run folder. Nothing is trained; scores
are kept, so that the same command is quick the second time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE


class Own(Words):
    """What comparing takes beside `identifier.*`."""

    run_dir: str = Field(description="the folder of a finished run")
    split: Literal["test"] = Field("test", description="whose images are asked about")
    only: list[str] | None = Field(None, description="some of the rows, [prototype,mllm.choice]")


SETTINGS = False


@exit_codes("identify")
def main(arguments: Sequence[str]) -> int:
    """Compare, print and write; returns the exit code."""
    from archipelago.actors.contest import contest

    own, words = read_words(arguments, Own)
    contest(own.run_dir, own.only, words, Console(highlight=False))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

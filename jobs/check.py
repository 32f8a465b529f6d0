"""Check settings and a stream: what would be learned, what is wrong and how to mend it.

    python jobs/check.py stream=folder stream.root=/data/images run_dir=/data/runs/first

Nothing is learned and nothing written; some images of each split are decoded. Every fault is a
line.
Exit codes: 0 the run can begin, 2 something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER

if TYPE_CHECKING:
    from archipelago.actors.checking import Checked, Looked


class Own(Words):
    """What the check takes beside settings."""

    sample: int = Field(48, ge=0, description="images of each split that are decoded; 0 = none")


@exit_codes("check")
def main(arguments: Sequence[str]) -> int:
    """Look and tell; returns the exit code."""
    from archipelago.actors.checking import check

    own, words = read_words(arguments, Own)
    found = check(words, own.sample)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    if found.domains:
        console.print(stream_table(found))
    for fault in found.faults:
        errors.print(f"check: {fault}", markup=False, soft_wrap=True)
    if not found.faults:
        console.print(verdict(found), soft_wrap=True)
    return EXIT_USER if found.faults else EXIT_DONE


def stream_table(found: Checked) -> Table:
    """Domains as rows, in the order of learning."""
    table = Table(header_style="bold")
    for name in ("domain", "classes", "train", "test", "prompt", "images tried"):
        table.add_column(name, justify="right" if name in ("classes", "train", "test") else "left")
    for each in found.domains:
        domain = each.domain
        prompt = domain.templates[0].format(domain.classes[0]) if domain.templates else "-"
        table.add_row(
            domain.name,
            str(len(domain.classes)),
            *(f"{each.counts[s]:,}" for s in each.counts),
            prompt,
            _tried(each),
        )
    return table


def verdict(found: Checked) -> str:
    """What the run would do."""
    settings = found.settings
    learned = f"; learned already: {', '.join(found.learned)}" if found.learned else ""
    return (
        f"{settings.method.name} would learn {len(found.domains)} domains in"
        f" {len(found.stages)} stages into {settings.run_dir}{learned}"
    )


def _tried(looked: Looked) -> str:
    broken = sum(looked.broken.values())
    if not broken:
        return str(looked.sampled)
    reasons = "; ".join(looked.broken)
    return f"{looked.sampled}, {broken} of them cannot be used: {reasons}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

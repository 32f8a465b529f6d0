"""Test again what a run learned: does every domain answer as well as its report says?

    python jobs/retest.py run_dir=/data/runs/first

Measures the newest model on the run's own test images, the domain given, beside what was measured
after the last stage.
Exit codes: 0 nothing is worse than `tolerance` points, 1 something is, 2 a mistake of the user's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE, EXIT_FAILURE


class Own(Words):
    """What a re-test takes."""

    run_dir: str = Field(description="the folder of a run, or its URI")
    device: str = Field("auto", description="auto, cpu or cuda")
    tolerance: float = Field(0.1, ge=0.0, description="points that a domain may have lost")


SETTINGS = False


@exit_codes("retest")
def main(arguments: Sequence[str]) -> int:
    """Measure and compare; returns the exit code."""
    from archipelago.actors.remeasuring import measure_run, remeasured_table

    own, _ = read_words(arguments, Own, settings=False)
    found = measure_run(own.run_dir, [], None, own.device)
    console = Console(highlight=False)
    console.print(remeasured_table(found))
    lost = {task: points for task, points in found.lost().items() if points > own.tolerance}
    for task, points in lost.items():
        console.print(f"{task}: {points:.1f} points less than its report says")
    return EXIT_FAILURE if lost else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

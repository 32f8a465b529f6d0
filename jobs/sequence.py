"""Learn a stream of domains, one after another, and measure what was kept.

    python jobs/sequence.py
    python jobs/sequence.py stream=parquet stream.root=/data/domains run_dir=/data/runs/first
    ray job submit --working-dir . -- python jobs/sequence.py run_dir=/shared/runs/first

The same command on the same `run_dir` continues an interrupted run; further domains append to it.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the run is locked, 143 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.errors import EXIT_DONE


@exit_codes("sequence", "the run failed; the same command continues from the last finished step")
def main(arguments: Sequence[str]) -> int:
    """Run a sequence with Hydra overrides; returns the exit code."""
    from archipelago.actors.learning import learn
    from archipelago.pipeline.evaluation.console import summary
    from archipelago.pipeline.store import RunFolder

    settings, report = learn(arguments)
    console = Console()
    console.print(summary(report))
    folder = RunFolder(str(settings.run_dir), read_only=True).folder
    console.print(f"Report: {folder.shown('report.html')}", soft_wrap=True, highlight=False)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

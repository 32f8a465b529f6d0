"""Bring MLflow up to date with a run folder: late, repeated or from nothing.

    python jobs/sync.py run_dir=/data/runs/first
    python jobs/sync.py run_dir=/data/runs/first tracking.uri=http://mlflow.example:5000

Exit codes: 0 MLflow holds everything, 1 it could not be reached, 2 a mistake of the user's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.errors import EXIT_DONE, EXIT_FAILURE, UserError


@exit_codes("sync")
def main(arguments: Sequence[str]) -> int:
    """Sync a run and its references; returns the exit code."""
    from archipelago.pipeline.config import load
    from archipelago.pipeline.store import RunFolder
    from archipelago.pipeline.tracking import sync

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = load(arguments)
    if settings.run_dir is None:
        raise UserError("run_dir: say which run to sync, run_dir=DIR")
    run = RunFolder.open(settings.run_dir)
    done = [sync(each, settings.tracking) for each in (run, *run.references().values())]
    return EXIT_DONE if all(done) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

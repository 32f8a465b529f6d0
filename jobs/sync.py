"""Bring MLflow up to date with a run folder: late, repeated or from nothing.

    python jobs/sync.py run_dir=/data/runs/first
    python jobs/sync.py run_dir=/data/runs/first tracking.uri=http://mlflow.example:5000

Exit codes: 0 MLflow holds everything, 1 it could not be reached, 2 a mistake of the user's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from rich.console import Console

from pipeline.config import load
from pipeline.errors import EXIT_DONE, EXIT_FAILURE, EXIT_USER, UserError
from pipeline.store import RunFolder
from pipeline.tracking import sync


def main(arguments: Sequence[str]) -> int:
    """Sync a run and its references; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        settings = load(arguments)
        if settings.run_dir is None:
            raise UserError("run_dir: say which run to sync, run_dir=DIR")
        run = RunFolder.open(settings.run_dir)
        done = [sync(each, settings.tracking) for each in (run, *run.references().values())]
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"sync: {error}", markup=False)
        return EXIT_USER
    return EXIT_DONE if all(done) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

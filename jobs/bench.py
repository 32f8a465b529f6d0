"""Measure what a stage costs beside its forward and backward passes.

    python jobs/bench.py run_dir=/data/runs/first

Reads the journal of a finished run and, in the same minute, times an empty TorchTrainer run whose
worker only imports what a stage imports. Prints where the seconds of each stage went.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from archipelago.pipeline.config import load
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from archipelago.pipeline.settings import ClusterSettings
from archipelago.pipeline.store import RunFolder

REPEATS = 3
PARTS = ("look", "start", "load", "trunk", "steps", "finish", "store", "evaluate", "report")


def main(arguments: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    try:
        settings = load(arguments)
        if settings.run_dir is None:
            raise UserError("run_dir: say which finished run to look at, run_dir=DIR")
        stages = stage_seconds(RunFolder.open(settings.run_dir))
        if not stages:
            raise UserError(f"run_dir={settings.run_dir}: no stage was finished there in one go")
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"bench: {error}", markup=False)
        return EXIT_USER
    empty = empty_trainer(settings.cluster)
    table = Table(title="Seconds of each stage")
    for name in ("task", *PARTS, "overhead"):
        table.add_column(name, justify="left" if name == "task" else "right")
    overheads = []
    for task, seconds in stages.items():
        overheads.append(sum(seconds[p] for p in ("start", "load", "finish", "store", "report")))
        shown = [f"{seconds[part]:.1f}" for part in PARTS]
        table.add_row(task, *shown, f"{overheads[-1]:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"empty TorchTrainer run with the same imports: median {np.median(empty):.1f} s"
        f" ({min(empty):.1f}-{max(empty):.1f} of {REPEATS});"
        f" overhead per stage: median {np.median(overheads):.1f} s"
        f" ({min(overheads):.1f}-{max(overheads):.1f} of {len(overheads)})"
    )
    return EXIT_DONE


def stage_seconds(run: RunFolder) -> dict[str, dict[str, float]]:
    """Seconds of each stage by part, from the journal.

    `look` = features and statistics before training, `start` = starting the workers (once in a
    run), waiting for them, and what a method works out in closed form (0 where a stage was trained
    while the one before was measured), `load` = backbone, prompts and held-out activations on the
    worker, `trunk` and `steps` = the training itself, `finish` = neighbours, probes and export,
    `store` = descriptions, studies, hashing and writing, `evaluate` = all tasks, `report` = until
    the next stage begins.
    """
    stages: dict[str, dict[str, float]] = {}
    events = run.journal.events()
    for index, event in enumerate(events):
        if event["event"] != "stage-done":
            continue
        later = events[index + 1 :]
        measured = next((e for e in later if e["event"] == "evaluated"), None)
        if measured is None:
            continue
        until = events[: events.index(measured)]
        done = event["seconds"]
        trained = _last(until, "stage-trained", event["stage"])["seconds"]
        # What trains after the stage answers already says so in an event of its own.
        fitted = (_last(until, "refined", event["stage"]) or event)["seconds"]
        following = later[later.index(measured) + 1 :]
        record = run.folder.read_json(f"evaluation/{event['stage']:03d}.json")
        load, trunk, steps = (
            part.get(key, 0.0)  # closed forms train nothing
            for part, key in ((fitted, "load"), (trained, "trunk"), (trained, "steps"))
        )
        worker = fitted.get("worker", 0.0)
        stages[event["task"]] = {
            "look": done["look"],
            "start": max(fitted["fit"] - worker, 0.0),
            "load": load,
            "trunk": trunk,
            "steps": steps,
            "finish": worker - load - trunk - steps,
            "store": done["stage"] - done["look"] - done["fit"],
            "evaluate": record["seconds"],
            # After the last stage come the references, which are runs of their own.
            "report": _gap(measured, following[0]) if _begins(following) else 0.0,
        }
    return stages


def empty_trainer(cluster: ClusterSettings) -> list[float]:
    """Wall seconds of TorchTrainer runs that import what a stage imports and report once."""
    import ray.train
    from ray.train.torch import TorchTrainer

    def worker(config: dict[str, Any]) -> None:
        import archipelago.pipeline.training.stage  # noqa: F401

        with tempfile.TemporaryDirectory() as folder:
            ray.train.report({"step": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    found = []
    own: dict[str, Any] = (
        {} if cluster.address else {"num_cpus": cluster.logical_cpus, "include_dashboard": False}
    )
    with (
        ray.init(cluster.address, log_to_driver=False, **own),
        tempfile.TemporaryDirectory() as storage,
    ):
        for repeat in range(REPEATS):
            clock = time.perf_counter()
            TorchTrainer(
                worker,
                train_loop_config={},
                scaling_config=ray.train.ScalingConfig(
                    num_workers=max(1, cluster.train.num_workers),
                    resources_per_worker={"CPU": cluster.train.num_cpus},
                ),
                run_config=ray.train.RunConfig(name=f"empty-{repeat}", storage_path=storage),
            ).fit()
            found.append(time.perf_counter() - clock)
    return found


def _last(events: list[dict[str, Any]], name: str, stage: int) -> dict[str, Any]:
    found = (e for e in reversed(events) if e["event"] == name and e["stage"] == stage)
    return next(found, {})


def _begins(events: list[dict[str, Any]]) -> bool:
    return bool(events) and events[0]["event"] == "stage-started"


def _gap(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    times = [datetime.fromisoformat(event["time"]) for event in (earlier, later)]
    return (times[1] - times[0]).total_seconds()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

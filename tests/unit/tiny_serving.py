"""A learned run of four colour domains with all that serving reads, in seconds and without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.identifiers.scorer import Scorer
from archipelago.pipeline.serving.pointer import next_pointer, write_pointer
from archipelago.pipeline.settings import ServingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable
from tests.unit.tiny_run import World, learn_stream, make_learner, open_run, run_settings

BORROWING = {"max_distance": 2.0, "min_gain": -100.0, "count": 1}
SERVING = ServingSettings(canary={"floor": 0.0, "tolerance": 1e-3, "images": 4})


def learned_run(world: World, where: Path, scorer: Scorer | None = None, **parts: Any) -> RunFolder:
    """Learn all domains; the run has its `run.json` and its basis."""
    method = {"name": "trge", "neighbours": BORROWING, "unseen": {"lambda_max": 0.7}}
    settings = run_settings(world, **({"method": method, "run_dir": str(where)} | parts))
    run = RunFolder(where)
    open_run(world, run, settings)
    score_cache = None if scorer is None else ScoreCache(scorer, settings.identifier, settings.seed)
    learn_stream(make_learner(world, run, settings, score_cache))
    return run


def copy_run(run: RunFolder, where: Path) -> RunFolder:
    """The same run in another place, to be spoilt."""
    assert run.folder.local is not None
    shutil.copytree(run.folder.local, where)
    return RunFolder(where)


def point(run: RunFolder, manifest: int) -> None:
    """Publish without asking anybody."""
    write_pointer(run, next_pointer(run, manifest), "publish")


def test_images(world: World, task: str, count: int = 6) -> np.ndarray:
    """Test images of a domain, uint8."""
    domain = next(d for d in world.domains if d.name == task)
    table = ImageTable.open(domain.tables["test"])
    return np.array(table.images(np.arange(min(count, len(table)))))


test_images.__test__ = False  # type: ignore[attr-defined]

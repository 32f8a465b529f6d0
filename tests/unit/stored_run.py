"""A small run as the current version stores it, kept in `tests/data`: every later version must
open, continue, serve, append to and forget from it. Before the first release it may be stored anew:

    python -m tests.unit.stored_run
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.model.backbone import EMBEDDED
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable
from tests.unit.tiny_run import (
    World,
    learn_stream,
    make_learner,
    make_world,
    open_run,
    run_settings,
)

STORED = Path(__file__).resolve().parents[1] / "data" / "run"
HERE = "@HERE@"  # in stored settings: the folder that the run was copied to
TASKS = ("apples", "boats", "cats")
LEARNED = TASKS[:2]
METHOD = {"name": "archipelago", "options": {"group": "on", "learning_rate": 0.02}}
TEXTS = ("run/run.json", "expected.json")
TOKENIZER = "tokenizer.json"  # that of the embedded CLIP


def build(place: Path) -> None:
    """Learn two of three domains and note what the model answers."""
    world = make_world(place, TASKS, train=6)
    run = RunFolder(place / "run")
    stream = {"reader": "parquet", "root": str(place / "stream"), "order": list(LEARNED)}
    chosen = run_settings(world, method=METHOD, stream=stream, run_dir=str(place / "run"))
    some = World(world.domains[: len(LEARNED)], world.backbone)
    open_run(some, run, chosen)
    learn_stream(make_learner(some, run, chosen))
    images = _images(world)
    answers = LearnedModel.open(run.uri).answer(images, top_k=99)
    np.save(place / "images.npy", images)
    document = [{"task": a.task, "classes": dict(a.classes)} for a in answers]
    (place / "expected.json").write_text(json.dumps(document))


def _images(world: World) -> np.ndarray:
    tables = [ImageTable.open(domain.tables["test"]) for domain in world.domains]
    return np.concatenate([table.images(np.arange(4)) for table in tables])


def copy(place: Path) -> Path:
    """The stored run in a folder of its own, with its paths put right."""
    shutil.copytree(STORED, place, dirs_exist_ok=True)
    shutil.copy(EMBEDDED["clip-tiny"] / TOKENIZER, place / "clip" / TOKENIZER)
    for name in TEXTS:
        file = place / name
        file.write_text(file.read_text().replace(HERE, str(place)))
    return place


def main() -> int:
    """Store it anew."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "it"
        place.mkdir()
        build(place)
        shutil.rmtree(STORED, ignore_errors=True)
        skipped = shutil.ignore_patterns("cache", "train", "LOCK", TOKENIZER)
        shutil.copytree(place, STORED, ignore=skipped)
        for name in TEXTS:
            file = STORED / name
            file.write_text(file.read_text().replace(str(place), HERE))
    return 0


if __name__ == "__main__":
    sys.exit(main())

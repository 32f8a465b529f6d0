"""Measure what groups cost the served model, without HTTP: CPU time of one thread a mixed batch.

    python jobs/bench_model.py run_dir=/data/runs/first

On a copy of the run with 1, 8, 32 and 100 synthetic groups, beside the image pass of frozen CLIP.
CPU time, and the fastest of several batches: other work on the machine matters little.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from archipelago.actors.arguments import load_settings
from archipelago.pipeline.benchmark.synthetic import grow, learned
from archipelago.pipeline.errors import EXIT_DONE, EXIT_USER, UserError
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.serving.pointer import next_pointer, write_pointer
from archipelago.pipeline.settings import CanarySettings
from archipelago.pipeline.store import RunFolder

SIZES = (1, 8, 32, 100)
BATCH, REPEATS = 32, 7


def main(arguments: Sequence[str]) -> int:
    """Print the table; returns the exit code."""
    console = Console(highlight=False)
    try:
        settings = load_settings(arguments)
        assert settings.run_dir is not None
        source = RunFolder.open(settings.run_dir)
        if source.folder.local is None or not source.models.versions():
            raise UserError(f"run_dir={settings.run_dir}: a local run with a stage is needed")
    except UserError as error:
        return _mistake(error)
    torch.set_num_threads(1)
    table = Table(title=f"CPU ms an image, a mixed batch of {BATCH}, one thread")
    for column in ("groups", "ms", "of frozen", "of the bound"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="archipelago-") as place:
        run = RunFolder(Path(place) / "run")
        skipped = shutil.ignore_patterns("cache", "train", "references", "serving*")
        shutil.copytree(source.folder.local, str(run.folder.local), ignore=skipped)
        try:
            manifests = grow(run, SIZES)
        except UserError as error:
            return _mistake(error)
        probes = [t.probe.images for group in learned(run) for t in group.tasks if t.probe]
        mixed = np.concatenate([np.stack(row) for row in zip(*probes, strict=False)])
        images = np.concatenate([mixed] * (BATCH // len(mixed) + 1))[:BATCH]
        serving = settings.serving.model_copy(update={"canary": CanarySettings(floor=0.0)})
        model = ServedModel(run.uri, serving, settings.cluster.device)
        tower = model.backbone.image
        share = model.current.state.method.first_blocks[0] / tower.depth
        bound = 1.0 / (2.0 - share)
        frozen = _fastest(partial(_frozen, model, images))
        table.add_row("frozen", f"{1000 * frozen / BATCH:.2f}", "1.00", "")
        for size, manifest in manifests.items():
            write_pointer(run, next_pointer(run, manifest), "bench")
            model.follow()
            taken = _fastest(partial(_classify, model, images))
            console.print(f"{size} groups: {1000 * taken / BATCH:.2f} ms an image")
            table.add_row(
                str(size),
                f"{1000 * taken / BATCH:.2f}",
                f"{frozen / taken:.2f}",
                f"{frozen / taken / bound:.2f}",
            )
    console.print(table)
    console.print(f"p = {share:g} of the image blocks are trunk: bound 1/(2-p) = {bound:.3f}")
    return EXIT_DONE


def _mistake(error: UserError) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"bench: {error}", markup=False)
    return EXIT_USER


def _classify(model: ServedModel, images: np.ndarray) -> None:
    model.classify(images, [Ask()] * len(images))


@torch.no_grad()
def _frozen(model: ServedModel, images: np.ndarray) -> None:
    with model.exact():
        model.backbone.encode_image(model.backbone.normalise(images))


def _fastest(call: Callable[[], None]) -> float:
    """CPU seconds of the fastest of several calls."""
    call()
    taken = []
    for _ in range(REPEATS):
        clock = time.thread_time()
        call()
        taken.append(time.thread_time() - clock)
    return min(taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

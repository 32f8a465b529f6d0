"""How far heads alone get on frozen tokens: one head a dense task, each trained by itself.

    python jobs/heads.py
    python jobs/heads.py stream.options.train=300 --steps=200
    python jobs/heads.py stream=pascal stream.root=/data/PASCAL_MT backbone=vit-b-16-openai

Words with `=` are settings as of `jobs/sequence.py`; `--steps`, `--batch` and `--channels` are the
heads'. Prints each task's figures for an untrained and the trained head. Needs no Ray.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from archipelago.actors.exits import exit_codes
from archipelago.pipeline.config import load
from archipelago.pipeline.dense import build
from archipelago.pipeline.dense.probe import fit_head, judge_head
from archipelago.pipeline.errors import EXIT_DONE
from archipelago.pipeline.model.backbone import Backbone, load_backbone
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import DenseTable, PreparedDomain, open_stream, prepare

CHUNK = 64


@torch.no_grad()
def tokens_of(backbone: Backbone, table: DenseTable) -> list[Tensor]:
    """Tokens (N, L, D) in half precision after each quarter of the blocks, shallow first."""
    tower = backbone.image
    depths = [tower.depth * quarter // 4 for quarter in (1, 2, 3, 4)]
    kept: dict[int, list[Tensor]] = {depth: [] for depth in depths}

    def keep(passed: int, x_BLD: Tensor) -> None:
        if passed in kept:
            kept[passed].append(x_BLD.half())

    for start in range(0, len(table), CHUNK):
        pixels = table.images(np.arange(start, min(start + CHUNK, len(table))))
        tower.run(tower.embed(backbone.normalise(pixels)), 0, tower.depth, record=keep)
    return [torch.cat(kept[depth]) for depth in depths]


def measure(
    settings: Settings, domains: list[PreparedDomain], options: argparse.Namespace
) -> Table:
    """Train and judge one head a task; a table of what came out."""
    backbone = load_backbone(settings.backbone)
    tables = {split: DenseTable.open(path) for split, path in domains[0].tables.items()}
    tokens = {split: tokens_of(backbone, table) for split, table in tables.items()}
    grid = int((backbone.image.tokens - 1) ** 0.5)
    out = Table("task", "metric", "untrained", "trained", "parameters", "s")
    for domain in domains:
        clock = time.perf_counter()
        task = build(str(domain.kind), len(domain.classes))
        rows = {split: np.flatnonzero(table.usable(domain.name)) for split, table in tables.items()}
        truth = {s: torch.from_numpy(tables[s].targets(domain.name, rows[s])) for s in tables}
        seen = {s: [x[torch.from_numpy(rows[s])] for x in tokens[s]] for s in tables}
        torch.manual_seed(settings.seed)
        widths = [x.shape[-1] for x in seen["train"]]
        head = task.head(widths, grid, backbone.image_size, options.channels)
        before = judge_head(task, head, seen["test"], truth["test"]).values()
        fit_head(
            task,
            head,
            seen["train"],
            truth["train"],
            steps=options.steps,
            batch=options.batch,
            seed=settings.seed,
        )
        after = judge_head(task, head, seen["test"], truth["test"]).values()
        size, seconds = sum(p.numel() for p in head.parameters()), time.perf_counter() - clock
        for i, (name, score) in enumerate(after.items()):
            arrow = "lower is better" if score.lower_is_better else ""
            facts = (f"{size:,}", f"{seconds:.0f}") if i == 0 else ("", "")
            out.add_row(
                domain.name if i == 0 else "",
                f"{name} ({score.unit}) {arrow}".strip(),
                f"{before[name].value:.1f}",
                f"{score.value:.1f}",
                *facts,
            )
    return out


@exit_codes("heads")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Heads of dense tasks on frozen tokens.")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    options = parser.parse_args(arguments)
    settings = load(["stream=scenes", *options.overrides])
    with tempfile.TemporaryDirectory() as folder:
        domains = prepare(
            open_stream(settings.stream, settings.seed, dense=True),
            size=settings.backbone.image_size or load_backbone(settings.backbone).image_size,
            run=folder,
            cache_dir=settings.cluster.cache_dir or str(Path(folder) / "cache"),
            cache_gib=settings.cluster.cache_gib,
            cluster=settings.cluster,
            max_pixels=settings.stream.max_pixels,
            use_ray=False,
        )
        Console().print(measure(settings, domains, options))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

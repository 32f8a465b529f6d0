"""Write down what the parts cost on this machine, for later versions to be held against.

    python jobs/bench_baseline.py to=benchmarks/2-core-cpu.json
    python jobs/bench_baseline.py size=vit-b-16 batch=8 to=benchmarks/2-core-cpu-vit-b-16.json

A feature pass and a training step of several methods at 10 and 100 classes (CPU milliseconds an
image, one thread), what each kind of process takes to start, what a stage of a small run on Ray
costs beside its training, and that run's peak memory. Other words are settings of the small run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE

BACKBONES = {
    "clip-tiny": ["backbone=clip-tiny"],
    "vit-b-16": ["backbone=vit-b-16-openai", "backbone.pretrained=random"],
}


class Own(Words):
    """What is measured, and where it is written."""

    to: str = Field(description="file that is written, replaced where it is there")
    size: Literal["clip-tiny", "vit-b-16"] = Field("clip-tiny", description="of the backbone")
    batch: int = Field(32, gt=0, description="images of a step")


@exit_codes("bench_baseline")
def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; returns the exit code."""
    from archipelago.actors.baseline import small_run
    from archipelago.pipeline.benchmark import baseline
    from archipelago.pipeline.config import load

    own, words = read_words(arguments, Own)
    chosen = BACKBONES[own.size]
    console = Console(highlight=False)
    with console.status("steps"):
        figures = baseline.steps(lambda name: load([*chosen, f"method={name}"]), batch=own.batch)
    with console.status("starts"):
        starts = baseline.starts()
    found: dict[str, Any] = {
        "machine": baseline.machine(),
        "backbone": own.size,
        "batch": own.batch,
        "ms_an_image": figures,
        "in_feature_passes": baseline.ratios(figures),
        "starts": starts,
    }
    if own.size == "clip-tiny":
        with console.status("a small run on Ray"):
            found["small_run"] = small_run(words)
    place = Path(own.to)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    console.print(_table(found), f"Written to {place}")
    return EXIT_DONE


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['backbone']}, {found['machine']['processor']}")
    table.add_column("")
    table.add_column("figure", justify="right")
    for name, value in found["ms_an_image"].items():
        passes = found["in_feature_passes"].get(name)
        beside = "" if passes is None else f" ({passes:.2f} passes)"
        table.add_row(f"{name}, CPU ms an image", f"{value:.2f}{beside}")
    for name, start in found["starts"].items():
        table.add_row(f"start of {name}", f"{start['seconds']:.1f} s, {start['mib']:.0f} MiB")
    for name, value in found.get("small_run", {}).items():
        table.add_row(f"small run: {name}", f"{value:.1f}")
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

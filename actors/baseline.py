"""A small run on an own local Ray, for what a stage costs beside its training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from archipelago.actors.learning import learn
from archipelago.pipeline.benchmark.memory import PeakMemory

WORDS = (
    "stream=atlas",
    "stream.order=[digits,glyphs,shapes]",
    "stream.options.train=60",
    "stream.options.test=30",
    "identifier=prototype",
    "method=trge",
    "training.steps=4",
    "training.warmup=1",
    "training.views=1",
    "training.batch_size=16",
    "tracking=off",
)


def small_run(words: Sequence[str] = ()) -> dict[str, float]:
    """Seconds in all, outside all work and so by stage; peak MiB of all its processes.

    Args:
        words: further settings of it.

    Raises:
        UserError: a mistake in them.
    """
    with tempfile.TemporaryDirectory(prefix="archipelago-") as place, PeakMemory() as peak:
        _, report = learn([*WORDS, *words, f"run_dir={place}/run"])
    seconds = report["seconds"]
    found = {name: float(seconds[name]) for name in ("total", "overhead", "overhead_per_stage")}
    if peak.mib is not None:
        found["peak_mib"] = peak.mib
    return found

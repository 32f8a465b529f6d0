"""What each part of a method is worth: a finished run answered anew, one switch changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from archipelago.actors.finished import open_finished
from archipelago.pipeline.config import stored_settings
from archipelago.pipeline.evaluation.ablation import VARIANTS, Ablation
from archipelago.pipeline.evaluation.console import percent
from archipelago.pipeline.records.evaluation import TITLES
from archipelago.pipeline.store import RunFolder

AS_IT_IS = "as it is"


def ablate(run_dir: str, console: Console) -> Table:
    """Measure every switch of a run's method, and keep the figures in its `ablation.json`.

    Raises:
        UserError: not a finished run, or its stream cannot be read.
        LockedError: another run holds the folder.
    """
    run = RunFolder.open(run_dir)
    settings = stored_settings(run.read()).model_copy(update={"run_dir": run.uri})
    with run.lock():
        opened = open_finished(run, settings)
        ablation = Ablation(
            run, settings, opened.domains, opened.engine, opened.basis, opened.scale
        )
        with console.status(AS_IT_IS):
            base = ablation.results({})
        rows = [ablation.row(AS_IT_IS, base, base)]
        for title, changes in VARIANTS.items():
            if ablation.applies(changes):
                with console.status(title):
                    found = ablation.results(changes)
                rows.append(ablation.row(title, found, base))
        run.folder.write_json("ablation.json", {"rows": rows})
    return table(rows, settings.method.name)


def table(rows: Sequence[dict[str, Any]], method: str) -> Table:
    """Variants as rows; gains in points, plus or minus half their interval. Fits 80 columns."""
    title = f"{method}, one switch changed at a time: percent, {TITLES['xtail']}"
    found = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=0, show_edge=False)
    found.add_column("", no_wrap=True)
    for name in ("Trans-\nfer", "Aver-\nage", "gain", "Last", "gain", "id\ngiven", "seen"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        given, tail = (row["settings"][name] or {} for name in ("mtil_given", "xtail"))
        found.add_row(
            row["variant"],
            percent(tail.get("transfer")),
            percent(tail.get("average")),
            _gain(tail.get("average_gain")),
            percent(tail.get("last")),
            _gain(tail.get("last_gain")),
            percent(given.get("last")),
            percent(row["acceptance"]),
        )
    return found


def _gain(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['mean']:+.1f}±{0.5 * (interval['high'] - interval['low']):.1f}"

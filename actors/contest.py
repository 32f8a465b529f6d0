"""Identifiers side by side on a finished run, in tables, a document and a curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import yaml
from rich.console import Console
from rich.table import Table

from archipelago.actors.finished import open_finished
from archipelago.pipeline.config import validate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.console import percent
from archipelago.pipeline.evaluation.identifier_comparison import (
    ComparisonRow,
    IdentifierComparison,
    IdentifierVariant,
)
from archipelago.pipeline.evaluation.plots import curve
from archipelago.pipeline.identifier_settings import owners
from archipelago.pipeline.identifiers.base import identifiers
from archipelago.pipeline.identifiers.position_bias import bias_in_words
from archipelago.pipeline.identifiers.scorer import build_scorer
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder


def contest(
    run_dir: str, only: Sequence[str] | None, words: Sequence[str], console: Console
) -> None:
    """Compare identifiers, print what came out and keep it in the run folder.

    Args:
        run_dir: a finished run.
        only: names of rows, `mllm` or `mllm.choice`; None = all.
        words: settings of the section `identifier`.
        console: takes the tables.

    Raises:
        UserError: not a run of a method that identifies, or a mistake in the words.
        LockedError: another run holds the folder.
    """
    run = RunFolder(run_dir)
    settings = _settings(run, words)
    with run.lock():
        comparison = _open(run, settings)
        with console.status("Reading the run ..."):
            tasks = comparison.read()
        rows = []
        for variant in variants():
            if only is None or {variant.name, variant.key} & set(only):
                with console.status(f"{variant.title} ..."):
                    rows.append(comparison.row(variant))
        _write(run, comparison, rows)
    for task, description in comparison.descriptions.items():
        console.print(f"[bold]{task}[/bold]: {description.text if description else '-'}")
    console.print(recognised(rows, tasks, comparison.scorer.model))
    console.print(consequences(rows))
    for row in rows:
        for line in remarks(row):
            console.print(f"{row.title}: {line}", markup=False)


def variants() -> list[IdentifierVariant]:
    """Every identifier there is, in each way of asking that it has."""
    return [
        IdentifierVariant(name, scoring)
        for name, kind in identifiers.known().items()
        for scoring in kind.asks
    ]


def recognised(rows: Sequence[ComparisonRow], tasks: Sequence[str], model: str) -> Table:
    """Own images to own task after the last stage: tasks as rows, identifiers as columns."""
    found = Table(
        title=f"Own test images to own task after the last stage, percent; model {model}",
        title_justify="left",
        header_style="bold",
    )
    found.add_column("task")
    for row in rows:
        found.add_column(row.title, justify="right")
    for task in tasks:
        found.add_row(task, *(percent(row.per_task[task]) for row in rows))
    found.add_section()
    found.add_row("mean", *(percent(row.closed) for row in rows))
    found.add_row("with none", *(percent(row.with_none) for row in rows))
    return found


def consequences(rows: Sequence[ComparisonRow]) -> Table:
    """Unseen images, cost and the metrics of the run: identifiers as columns."""
    found = Table(
        title="Unseen images (mean over the stages), cost of all stages, what comes of it",
        title_justify="left",
        header_style="bold",
    )
    found.add_column("")
    for row in rows:
        found.add_column(row.title, justify="right")

    def line(name: str, say: Callable[[ComparisonRow], str]) -> None:
        found.add_row(name, *(say(row) for row in rows))

    line("unseen: AUROC, %", lambda row: percent(row.auroc))
    line("seen images accepted, %", lambda row: percent(row.accepted))
    line("unseen images refused, %", lambda row: percent(row.refused))
    found.add_section()
    line("images a second", lambda row: _speed(row.images_per_second))
    line("calls", lambda row: f"{row.calls:,}")
    line("calls, % of decisions", lambda row: percent(row.calls_share))
    line("scorings", lambda row: f"{row.scorings:,}")
    found.add_section()
    line("Transfer", lambda row: percent(row.transfer))
    line("Average", lambda row: percent(row.average))
    line("Last", lambda row: percent(row.last))
    return found


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def remarks(row: ComparisonRow) -> list[str]:
    """What else was found about an identifier, in sentences."""
    found = []
    if "margin" in row.extra:
        found.append(
            f"asks below a margin of {row.extra['margin']:.3f}; the model's answer weighs"
            f" {row.extra['weight']:.2f}"
        )
    if row.extra.get("position_bias"):
        found.append(bias_in_words(row.extra["position_bias"]))
    return found


def _settings(run: RunFolder, words: Sequence[str]) -> Settings:
    """The run's own settings, with the words for its section `identifier`, which has a model."""
    config = {**run.read()["config"], "run_dir": run.uri}
    if config["identifier"]["name"] not in owners("model"):
        config["identifier"] = {**config["identifier"], "name": "mllm"}
    for word in words:
        key, equals, text = word.partition("=")
        section, dot, name = key.partition(".")
        if not equals:
            raise UserError(f"{word}: write key=value")
        value = yaml.safe_load(text)
        if section != "identifier" or not dot:
            raise UserError(f"{key}: unknown here; give run_dir, split, only or identifier.*")
        first, _, rest = name.partition(".")
        if rest:
            config[section][first] = {**config[section].get(first, {}), rest: value}
        else:
            config[section][first] = value
    settings = validate(config)
    method = method_class(settings.method.name)
    if not method.identifies():
        raise UserError(f"run_dir: method {method.name} identifies nothing; give a run of trge")
    return settings


def _open(run: RunFolder, settings: Settings) -> IdentifierComparison:
    opened = open_finished(run, settings)
    scorer = build_scorer(settings.multimodal)
    return IdentifierComparison(
        run, settings, opened.domains, opened.engine, opened.basis, opened.scale, scorer
    )


def _write(run: RunFolder, comparison: IdentifierComparison, rows: Sequence[ComparisonRow]) -> None:
    words = {t: d.asdict() for t, d in comparison.descriptions.items() if d is not None}
    document = {
        "model": comparison.scorer.model,
        "descriptions": words,
        "rows": [dataclasses.asdict(row) for row in rows],
        "curve": comparison.curve,
    }
    run.folder.write_json("identify/test.json", document)
    if comparison.curve:
        alone = {row.title: row.closed for row in rows if not row.title.startswith("cascade")}
        run.folder.write("identify/curve.png", curve(comparison.curve, alone))

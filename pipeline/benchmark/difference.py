"""What differs between two runs: settings, figures in every setting, and what that means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from archipelago.pipeline.benchmark.certainty import intervals
from archipelago.pipeline.config import flatten
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.console import percent
from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.evaluation.records import Records, read_records
from archipelago.pipeline.evaluation.report import build_report
from archipelago.pipeline.identifier_settings import own_keys
from archipelago.pipeline.records.evaluation import TITLES
from archipelago.pipeline.store import RunFolder

FIGURES = ("transfer", "average", "last")
SAMPLES = 1000
UNSAID = ("run_dir", "cluster", "tracking", "serving")  # where it ran, not what came out


@dataclass(frozen=True)
class Difference:
    """Two runs, a and b.

    Attributes:
        settings: key -> values of a and b, where they differ.
        figures: (setting, figure, a, b), percent.
        gains: (setting, figure) -> mean, low, high of b - a; empty where the test images differ.
        tasks: task -> accuracy after the last stage in a and b, the domain given.
    """

    settings: dict[str, tuple[Any, Any]]
    figures: list[tuple[str, str, float | None, float | None]]
    gains: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


def difference(a: str, b: str) -> Difference:
    """Compare two run folders.

    Raises:
        UserError: one of them is no run, or nothing of it was measured yet.
    """
    runs = {"a": _opened("a", a), "b": _opened("b", b)}
    records = {key: _records(key, run) for key, run in runs.items()}
    reports = {key: build_report(run) for key, run in runs.items()}
    first, second = (flatten(own_keys(run.read()["config"])) for run in runs.values())
    settings = {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key) and key.split(".")[0] not in UNSAID
    }
    figures = [
        (setting, figure, *(_figure(report, setting, figure) for report in reports.values()))
        for setting in SETTINGS
        for figure in FIGURES
    ]
    gains: dict[tuple[str, str], dict[str, Any]] = {}
    if _same_images(records["a"], records["b"]):
        listed = {key: [("", 0, found)] for key, found in records.items()}
        for row in intervals(listed, "a", SAMPLES):
            gains[row["setting"], row["figure"]] = row
    return Difference(
        settings,
        [row for row in figures if row[2:] != (None, None)],  # type: ignore[misc]
        gains,
        _tasks(*reports.values()),
    )


def tables(found: Difference) -> Iterator[Table]:
    """For a terminal: settings, figures, domains."""
    if found.settings:
        table = Table(title="settings that differ", header_style="bold")
        for name in ("", "a", "b"):
            table.add_column(name, overflow="fold")
        for key, (one, two) in found.settings.items():
            table.add_row(key, str(one), str(two))
        yield table
    title = "percent" if found.gains else "percent; the test images are not the same"
    table = Table(title=title, header_style="bold")
    table.add_column("setting")
    for name in ("figure", "a", "b", "b - a"):
        table.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    for setting, figure, one, two in found.figures:
        gain = _gain(found, setting, figure, one, two)
        table.add_row(TITLES[setting], figure, percent(one), percent(two), gain)
    yield table
    table = Table(title="after the last stage, the domain given, percent", header_style="bold")
    for name in ("domain", "a", "b"):
        table.add_column(name, justify="left" if name == "domain" else "right")
    for task, (one, two) in found.tasks.items():
        table.add_row(task, percent(one), percent(two))
    yield table


def _gain(
    found: Difference, setting: str, figure: str, one: float | None, two: float | None
) -> str:
    row = found.gains.get((setting, figure))
    if row is not None:
        return f"{row['mean']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
    return "-" if one is None or two is None else f"{two - one:+.1f}"


def _opened(key: str, where: str) -> RunFolder:
    try:
        return RunFolder.open(where)
    except UserError as error:
        raise UserError(f"{key}={where}: {error}") from None


def _records(key: str, run: RunFolder) -> Records:
    records = read_records(run)
    if records is None or not records.evaluations:
        raise UserError(f"{key}={run.folder.shown()}: nothing of it was measured yet")
    return records


def _figure(report: dict[str, Any], setting: str, figure: str) -> float | None:
    found = report["settings"].get(setting)
    return None if found is None else found[figure]


def _same_images(one: Records, two: Records) -> bool:
    """Whether every domain that both learned was tested on the same images."""
    first, second = _digests(one), _digests(two)
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[task] == second[task] for task in shared)


def _digests(records: Records) -> dict[str, Any]:
    found = {}
    for _, card in records.groups:
        for task in card["tasks"]:
            found[task["name"]] = task["digests"]["test"]
    return found


def _tasks(
    one: dict[str, Any], two: dict[str, Any]
) -> dict[str, tuple[float | None, float | None]]:
    rows = []
    for report in (one, two):
        given = report["settings"]["mtil_given"]
        last = [row for row in given["matrix"] if any(v is not None for v in row)] if given else []
        rows.append(dict(zip(report["tasks"], last[-1], strict=True)) if last else {})
    return {task: (rows[0].get(task), rows[1].get(task)) for task in {**rows[0], **rows[1]}}

"""What a run reached, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archipelago.pipeline.identifiers.position_bias import bias_in_words
from archipelago.pipeline.records.evaluation import TITLES

ACCURACY = "accuracy"  # a task's own figure where it classifies
HARDEST_FIRST = ("xtail", "mtil_identified", "mtil_given")  # of these, one is shown by stage


def summary(report: dict[str, Any]) -> Group:
    """Accuracy after each stage, figures of dense tasks, and what follows from both."""
    own = report["own"] or {}
    dense = [task for task in report["tasks"] if own.get(task, ACCURACY) != ACCURACY]
    parts: list[RenderableType] = []
    if len(dense) < len(report["tasks"]):
        parts.append(accuracy_table(report))
    if dense:
        parts.append(measures_table(report, dense))
    return Group(*parts, _caption(report))


def measures_table(report: dict[str, Any], tasks: Sequence[str]) -> Table:
    """Each task's own figure, with that of a model of its own beside it where there is one."""
    title = f"{report['method']} on {report['stream']}: test images, the task given"
    table = Table(title=title, header_style="bold")
    for name in ("task", "measure", "learned", "alone"):
        table.add_column(name, justify="left" if name in ("task", "measure") else "right")
    alone = report["baseline"]["metrics"] if report["baseline"] else {}
    for task in tasks:
        name = report["own"][task]
        found = report["metrics"].get(task, {}).get(name)
        unit = "" if found is None else f", {found['unit']}"
        lower = " (lower is better)" if found is not None and found["lower_is_better"] else ""
        values = [None if f is None else f["value"] for f in (found, alone.get(task, {}).get(name))]
        table.add_row(task, f"{name}{unit}{lower}", *(percent(value) for value in values))
    return table


def accuracy_table(report: dict[str, Any]) -> Table:
    """Stages as rows, tasks as columns, references below; in the hardest setting measured."""
    setting = next((name for name in HARDEST_FIRST if report["settings"][name]), "mtil_given")
    figures = report["settings"][setting] or report
    table = Table(
        title=f"{report['method']} on {report['stream']}: percent right, {TITLES[setting]}",
        header_style="bold",
    )
    table.add_column("after stage", no_wrap=True)
    for task in report["tasks"]:
        table.add_column(task, justify="right")
    table.add_row("zero-shot", *_row(figures["zero_shot"]), style="dim", end_section=True)
    for stage, row in enumerate(figures["matrix"]):
        if any(value is not None for value in row):
            known = sum(len(tasks) for tasks in report["stages"][: stage + 1])
            label = Text(f"{stage} {'+'.join(report['stages'][stage])}", overflow="ellipsis")
            table.add_row(label, *_row(row, known), end_section=stage == len(report["stages"]) - 1)
    for name, other in report["references"].items():
        reached = other.get("settings") or {}
        same, given = reached.get(setting), reached.get("mtil_given")
        if same:
            table.add_row(name, *_row(same["row"]), style="dim")
        elif given:
            table.add_row(f"{name}, {TITLES['mtil_given']}", *_row(given["row"]), style="dim")
    return table


def percent(value: float | None) -> str:
    """One decimal, or a dash where nothing is defined."""
    return "-" if value is None else f"{value:.1f}"


def _row(values: list[float | None], learned: int = 0) -> list[Text]:
    """Cells; those of the first `learned` tasks are bold."""
    bold = [column < learned for column in range(len(values))]
    return [
        Text(percent(value), style="bold" if strong else "")
        for value, strong in zip(values, bold, strict=True)
    ]


def _caption(report: dict[str, Any]) -> Text:
    text = Text()
    for name, figures in report["settings"].items():
        if figures is not None:
            joined = "/".join(percent(figures[key]) for key in ("transfer", "average", "last"))
            text.append(f"Transfer/Average/Last {joined}", style="bold")
            text.append(f"   {TITLES[name]}\n")
    text.append(f"{report['setting']}, {report['status']}")
    if report["delta_m"] is not None:
        single = report["baseline"]["method"]
        text.append(f"\nDelta_m {report['delta_m']:+.2f} % over single tasks ({single})")
    gap = report["intervals"]["transfer_minus_zero_shot"]
    if gap is not None:
        text.append(
            f"\nTransfer minus zero-shot {gap['mean']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]"
        )
    identifier = report["identifier"]
    if identifier is not None:
        seen = [value for value in identifier["seen_acceptance"] if value is not None]
        accepted = percent(seen[-1] if seen else None)
        text.append(f"\nidentifier: {percent(identifier['closed_accuracy'])} closed-set, ")
        text.append(f"{percent(identifier['accuracy'])} with 'none'; seen-acceptance {accepted}")
        if identifier["model"] is not None:
            text.append(f"\n{identifier['backend']}: {identifier['model']} was asked ")
            text.append(f"{identifier['calls']} times, {identifier['fallbacks']} fallbacks")
        if identifier["position_bias"] is not None:
            text.append(f"\n{bias_in_words(identifier['position_bias'])}")
    for group in report["groups"]:
        for task, description in group.get("descriptions", {}).items():
            by = "" if description["by"] == "mllm" else " (by hand)"
            text.append(f"\n{task}: ", style="bold")
            text.append(f"{description['text']}{by}")
    return text

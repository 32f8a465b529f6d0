"""The accuracy matrix for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.identifiers.places import said


def summary_table(report: dict[str, Any]) -> Table:
    """Stages as rows, tasks as columns, references below, Transfer/Average/Last in the caption."""
    table = Table(
        title=f"{report['method']} on {report['stream']}: accuracy after each stage, percent",
        caption=_caption(report),
        caption_justify="left",
        header_style="bold",
    )
    table.add_column("after stage", no_wrap=True)
    for task in report["tasks"]:
        table.add_column(task, justify="right")
    table.add_row("zero-shot", *_row(report["zero_shot"]), style="dim", end_section=True)
    for stage, row in enumerate(report["matrix"]):
        if any(value is not None for value in row):
            known = sum(len(tasks) for tasks in report["stages"][: stage + 1])
            label = Text(f"{stage} {'+'.join(report['stages'][stage])}", overflow="ellipsis")
            table.add_row(label, *_row(row, known), end_section=stage == len(report["stages"]) - 1)
    for name, key in (("fine-tuning", "finetune"), ("upper bound", "upper_bound")):
        if report[key] is not None:
            table.add_row(name, *_row(report[key]), style="dim")
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
    scores = "/".join(percent(report[key]) for key in ("transfer", "average", "last"))
    text.append(f"Transfer/Average/Last {scores}", style="bold")
    text.append(f"   ({report['setting']}, {report['status']})")
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
            text.append(f"\n{said(identifier['position_bias'])}")
    for group in report["groups"]:
        for task, description in group.get("descriptions", {}).items():
            by = "" if description["by"] == "mllm" else " (by hand)"
            text.append(f"\n{task}: ", style="bold")
            text.append(f"{description['text']}{by}")
    return text

"""report.html: one file without any outside asset, readable on a phone, in light and in dark."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from archipelago.pipeline.evaluation.drawings import expert_panels

WIDTH, HEIGHT, LEFT, BOTTOM = 200, 104, 22, 12
"""A panel's size and margins, in SVG units."""


def render(report: dict[str, Any]) -> str:
    """The page for a report (the dictionary that report.json holds)."""
    tasks = report["tasks"]
    identifier = report["identifier"]
    return _template().render(
        r=report,
        measured=_measured(report),
        seen=_latest(identifier["seen_acceptance"]) if identifier else None,
        zero_shot=_zero_shot(report),
        panels=[_panel(report, column) for column in range(len(tasks))],
        comparison=_comparison(report),
        confusion=_confusion(report) if identifier else [],
        growth=_growth(report),
        experts=expert_panels(report),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": lambda value: "–" if value is None else f"{value:.1f}",
        "signed": lambda value: "–" if value is None else f"{value:+.1f}".replace("-", "−"),
        "count": _count,
        "size": lambda value: _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB")),
        "duration": _duration,
    }
    return environment.get_template("report.html")


def _count(value: int | None) -> str:
    return "–" if value is None else _scaled(value, 1000.0, ("", "k", "M", "G"))


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units:
        if value < base or unit == units[-1]:
            break
        value /= base
    text = f"{value:.0f}" if unit == units[0] or value >= 100 else f"{value:.1f}"
    return f"{text} {unit}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _measured(report: dict[str, Any]) -> int:
    """Tasks of the stages that were measured."""
    pairs = zip(report["stages"], report["matrix"], strict=True)
    return sum(len(tasks) for tasks, row in pairs if any(value is not None for value in row))


def _latest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _zero_shot(report: dict[str, Any]) -> dict[str, float | None]:
    """Frozen CLIP's constant matrix: its Transfer leaves out the first task, as ours does."""
    row, first = report["zero_shot"], len(report["stages"][0])
    return {"transfer": _mean(row[first:]), "average": _mean(row), "last": _mean(row)}


def _comparison(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of references, worst to best as one expects them."""
    rows = [_line("zero-shot", _zero_shot(report), report["zero_shot"], "quiet")]
    rows += [
        _line(name, report["references"][key], report["references"][key]["row"], "quiet")
        for key, name in (("finetune", "fine-tuning"),)
        if key in report["references"]
    ]
    identifier = report["identifier"]
    own = _line(
        f"{report['method']}, {report['setting']}",
        report,
        report["columns"]["last"],
        "lead",
    )
    own["seen"] = _latest(identifier["seen_acceptance"]) if identifier else None
    rows.append(own)
    if identifier and report["setting"] != "task given":
        last = next((row for row in reversed(report["matrix_oracle"]) if any(row)), None)
        oracle = {name: report[f"{name}_oracle"] for name in ("transfer", "average", "last")}
        rows.append(_line(f"{report['method']}, given id", oracle, last, ""))
    if "lora_per_task" in report["references"]:
        bound = report["references"]["lora_per_task"]
        rows.append(_line("upper bound, adapter per task", bound, bound["row"], "quiet"))
    shown = {"finetune", "lora_per_task"}
    for key in sorted(report["references"].keys() - shown):
        other = report["references"][key]
        rows.append(_line(key, other, other["row"], "quiet"))
    empty = [None] * len(report["tasks"])
    return [{**row, "columns": row["columns"] or empty} for row in rows]


def _line(name: str, scores: dict, columns: list | None, style: str) -> dict[str, Any]:
    figures = {key: scores[key] for key in ("transfer", "average", "last")}
    return {"name": name, "columns": columns, "style": style, "seen": None, **figures}


def _confusion(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the identifier's answers; right = the own task, or "none" for one not yet learned."""
    options = report["identifier"]["options"]
    rows = []
    for task, counts in zip(report["tasks"], report["identifier"]["confusion"], strict=False):
        total = sum(counts)
        right = task if task in options else options[-1]
        cells = [
            {"count": n, "share": 100.0 * n / total if total else None, "right": option == right}
            for option, n in zip(options, counts, strict=True)
        ]
        rows.append({"task": task, "images": total, "cells": cells})
    return rows


def _growth(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Stored parameters after each stage, as widths in percent of the final total."""
    total = max(report["parameters"]["total"], 1)
    bars, groups, identifier = [], 0, 0
    for group in report["groups"]:
        groups += group["parameters"]["group"]
        identifier += group["parameters"].get("identifier") or 0
        bars.append(
            {
                "task": group["task"],
                "groups": groups,
                "identifier": identifier,
                "total": groups + identifier,
                "width": round(100 * groups / total, 2),
                "rest": round(100 * identifier / total, 2),
            }
        )
    return bars


def _panel(report: dict[str, Any], column: int) -> dict[str, Any]:
    """One task's accuracy over the stages as a small drawing."""
    stages = len(report["stages"])
    learned = next(
        i for i, names in enumerate(report["stages"]) if report["tasks"][column] in names
    )
    right, top = WIDTH - 6, 6

    def x(stage: float) -> float:
        return LEFT + (right - LEFT) * (stage / (stages - 1) if stages > 1 else 0.5)

    def y(value: float) -> float:
        return top + (HEIGHT - BOTTOM - top) * (1 - value / 100)

    ours = [row[column] for row in report["matrix"]]
    oracle = [row[column] for row in report["matrix_oracle"]]
    parts = [
        f'<rect class="unseen" x="{LEFT}" y="{top}" width="{x(learned) - LEFT:.1f}" '
        f'height="{HEIGHT - BOTTOM - top}"/>'
    ]
    for tick in (0, 50, 100):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y(tick) + 3}" text-anchor="end">{tick}</text>')
    frozen = report["zero_shot"][column]
    if frozen is not None:
        height = f"{y(frozen):.1f}"
        parts.append(f'<line class="frozen" x1="{LEFT}" x2="{right}" y1="{height}" y2="{height}"/>')
    for values, kind in ((oracle, "oracle"), (ours, "ours")):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values) if v is not None)
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    if ours[learned] is not None:
        title = f"<title>{ours[learned]:.1f} when learned</title>"
        at = f'cx="{x(learned):.1f}" cy="{y(ours[learned]):.1f}"'
        parts.append(f'<circle class="dot" {at} r="3.6">{title}</circle>')
    for stage in range(stages):
        parts.append(
            f'<text x="{x(stage):.1f}" y="{HEIGHT - 1}" text-anchor="middle">{stage}</text>'
        )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return {"task": report["tasks"][column], "last": _latest(ours), "svg": Markup(svg)}

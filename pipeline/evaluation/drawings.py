"""Drawings of expert groups for report.html: who uses which expert, and how much is shared.

Shapes: N routers, T tasks of a stage, E experts.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

CELL, GAP, LABEL = 9, 5, 96
"""Size of a cell, space between routers and width of the labels, in SVG units."""
WIDTH, HEIGHT = 240, 92


def expert_panels(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Per stage: its name, a grid of expert loads, a curve of the shared gate if there is one."""
    return [
        {
            "stage": stage["stage"],
            "task": "+".join(stage["tasks"]),
            "load": _load(stage),
            "gate": _curve(stage, "shared_gate") if stage["shared"] else None,
            "shared": _mean(stage["shared_gate"]) if stage["shared"] else None,
            "information": _mean(stage["information"]) if len(stage["tasks"]) > 1 else None,
        }
        for stage in report["experts"]
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _load(stage: dict[str, Any]) -> Markup:
    """A row per router and task, a column per expert; the darker, the larger the mean gate."""
    load_NTE, tasks = stage["load"], stage["tasks"]
    experts = len(load_NTE[0][0])
    parts, y = [], 0
    for router, load_TE in zip(stage["routers"], load_NTE, strict=True):
        for number, (task, load_E) in enumerate(zip(tasks, load_TE, strict=True)):
            text = router if number == 0 else ""
            parts.append(f'<text x="0" y="{y + CELL - 1}">{escape(text)}</text>')
            top = max(max(load_E), 1e-9)
            for e, value in enumerate(load_E):
                x = LABEL + e * CELL + (GAP if e >= experts - stage["shared"] else 0)
                kind = "shared" if e >= experts - stage["shared"] else "routed"
                title = f"<title>{escape(task)}, expert {e} ({kind}): {value:.3f}</title>"
                parts.append(
                    f'<rect class="{kind}" x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}"'
                    f' fill-opacity="{0.08 + 0.92 * value / top:.2f}">{title}</rect>'
                )
            y += CELL
        y += GAP
    width = LABEL + experts * CELL + GAP
    label = f"Expert load of {escape('+'.join(tasks))}"
    return Markup(  # every part is a number of ours or escaped
        f'<svg class="load" style="max-width:{1.4 * width:.0f}px" viewBox="0 0 {width} {y}"'
        f' role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _curve(stage: dict[str, Any], name: str) -> Markup | None:
    """A figure over the steps of training, from 0 to 1."""
    points = [(p["step"], p[name]) for p in stage["training"] if p[name] is not None]
    if len(points) < 2:
        return None
    last, right, bottom = points[-1][0], WIDTH - 6, HEIGHT - 14
    line = " ".join(
        f"{24 + (right - 24) * step / last:.1f},{6 + (bottom - 6) * (1 - value):.1f}"
        for step, value in points
    )
    ticks = "".join(
        f'<line class="grid" x1="24" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text x="20" y="{y + 3}" text-anchor="end">{value:g}</text>'
        for value, y in ((0, bottom), (0.5, (bottom + 6) / 2), (1, 6))
    )
    return Markup(
        f'<svg style="max-width:{2 * WIDTH}px" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="Gate of the shared experts">{ticks}'
        f'<polyline class="ours" points="{line}"/>'
        f'<text x="{right}" y="{HEIGHT - 2}" text-anchor="end">step {last}</text></svg>'
    )

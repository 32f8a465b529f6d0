"""compare.html: the comparison as one file without any outside asset; and its plots as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archipelago.pipeline.benchmark.summary import (
    COSTS,
    costs,
    differences,
    headline,
    interval,
    lines,
    measured_settings,
    shown,
)
from archipelago.pipeline.records.evaluation import TITLES

DPI, SEA, SAND = 110, "#0b6e8a", "#c9772b"


def render(document: Mapping[str, Any]) -> str:
    """The page for a comparison (the dictionary that compare.json holds)."""
    rows = document["rows"]
    tables = [
        {"title": headline(setting), "lines": lines(rows, setting)}
        for setting in measured_settings(rows)
    ]
    return _template().render(
        d=document,
        tables=tables,
        costs=costs(rows),
        differences=differences(document["intervals"]),
        heads=[(key, title, digits) for key, (title, digits) in COSTS.items()],
        titles=TITLES,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"figure": shown, "interval": interval}
    return environment.get_template("compare.html")


def plots(document: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG by name, one a setting: Average and Last of every method, with the spread over worlds."""
    return {s: _bars(document, s) for s in measured_settings(document["rows"])}


def _bars(document: Mapping[str, Any], setting: str) -> bytes:
    found = lines(document["rows"], setting)[::-1]
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(found)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for offset, key, colour in ((0.18, "average", SAND), (-0.18, "last", SEA)):
        axes.barh(
            [i + offset for i in range(len(found))],
            [line[key] or 0.0 for line in found],
            xerr=[line[f"{key}_std"] or 0.0 for line in found],
            height=0.34,
            color=colour,
            label=key.capitalize(),
        )
    axes.set_yticks(range(len(found)), [line["method"] for line in found])
    axes.set_title(headline(setting), loc="left", fontsize=10)
    axes.set_xlabel("percent", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

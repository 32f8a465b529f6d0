"""compare.json as tables: one line a method, the mean over worlds, and how far worlds are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from archipelago.pipeline.evaluation.protocol import CIL, SETTINGS
from archipelago.pipeline.records.evaluation import TITLES

FIGURES = ("transfer", "average", "last")
COSTS = {
    "forgetting": ("forgetting", 1),
    "identifier": ("own domain", 1),
    "seen_acceptance": ("seen accepted", 1),
    "unseen_auroc": ("unseen AUROC", 1),
    "parameters_trained": ("trained", 0),
    "parameters": ("with identifier", 0),
    "bytes": ("bytes", 0),
    "passes": ("passes", 2),
    "image_gradients": ("image gradients", 0),
    "seconds": ("learning s", 1),
    "peak_mib": ("peak MiB", 0),
}


class Line(dict[str, Any]):
    """One method: `method`, `worlds`, and per figure its mean and deviation over worlds."""


def lines(rows: Sequence[Mapping[str, Any]], setting: str) -> list[Line]:
    """A table's lines in one setting, the best Last first; who has no answer is left out."""
    found = []
    for label in dict.fromkeys(row["method"] for row in rows):
        own = [r["settings"][setting] for r in rows if r["method"] == label]
        known = [figures for figures in own if figures is not None]
        if not known:
            continue
        line = Line(method=label, worlds=len(known))
        for figure in FIGURES:
            line[figure], line[f"{figure}_std"] = _spread([f[figure] for f in known])
        found.append(line)
    return sorted(found, key=lambda line: -np.inf if line["last"] is None else -line["last"])


def costs(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """What every method costs and forgets, means over worlds."""
    found = []
    for label in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == label]
        line = Line(method=label, worlds=len(own))
        for key in COSTS:
            line[key], line[f"{key}_std"] = _spread([row[key] for row in own])
        found.append(line)
    return found


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def shown(value: float | None, digits: int = 1) -> str:
    """A figure for people."""
    return "-" if value is None else f"{value:,.{digits}f}"


def measured_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings in which any method has an answer."""
    return [s for s in (*SETTINGS, CIL) if any(row["settings"][s] is not None for row in rows)]


def headline(setting: str) -> str:
    """A setting as a heading."""
    return TITLES[setting].capitalize()


def tables(document: Mapping[str, Any]) -> list[Table]:
    """For a terminal: one table a setting."""
    found = []
    for setting in measured_settings(document["rows"]):
        table = Table(title=headline(setting), header_style="bold", title_justify="left")
        table.add_column("method")
        for figure in FIGURES:
            table.add_column(figure.capitalize(), justify="right")
        for line in lines(document["rows"], setting):
            table.add_row(line["method"], *(_with_spread(line, figure) for figure in FIGURES))
        found.append(table)
    return found


def differences(intervals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each setting and method, with its intervals by figure."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for item in intervals:
        key = item["setting"], item["method"]
        line = {"setting": item["setting"], "method": item["method"], "average": None, "last": None}
        found.setdefault(key, line)[item["figure"]] = item
    return list(found.values())


def interval(item: Mapping[str, Any] | None) -> str:
    """`+1.2 [+0.3, +2.1]`."""
    if item is None:
        return "-"
    return f"{item['mean']:+.1f} [{item['low']:+.1f}, {item['high']:+.1f}]"


def markdown(document: Mapping[str, Any]) -> str:
    """compare.md."""
    rows, parts = document["rows"], ["# Methods side by side", "", document["caption"]]
    for setting in measured_settings(rows):
        parts += ["", f"## {headline(setting)}", ""]
        parts += ["| method | worlds | Transfer | Average | Last |", "|---|---|---|---|---|"]
        for line in lines(rows, setting):
            cells = [_with_spread(line, figure) for figure in FIGURES]
            parts.append(f"| `{line['method']}` | {line['worlds']} | {' | '.join(cells)} |")
    heads = [title for title, _ in COSTS.values()]
    parts += ["", "## What it costs", "", f"| method | {' | '.join(heads)} |"]
    parts.append("|---" * (len(heads) + 1) + "|")
    for line in costs(rows):
        cells = [shown(line[key], digits) for key, (_, digits) in COSTS.items()]
        parts.append(f"| `{line['method']}` | {' | '.join(cells)} |")
    if document["intervals"]:
        against = document["intervals"][0]["against"]
        parts += ["", f"## More or less than `{against}`, points with 95 % intervals", ""]
        parts += ["| setting | method | Average | Last |", "|---" * 4 + "|"]
        for pair in differences(document["intervals"]):
            cells = [interval(pair[figure]) for figure in ("average", "last")]
            title = TITLES[pair["setting"]]
            parts.append(f"| {title} | `{pair['method']}` | {' | '.join(cells)} |")
    for item in document["ranking"]:
        ranks = sorted(item["ranks"].items(), key=lambda pair: pair[1])
        said = ", ".join(f"`{label}` {rank:.2f}" for label, rank in ranks)
        where = f"over {item['streams']} streams, {TITLES[item['setting']]}"
        parts += [
            "",
            f"Mean ranks by Last {where}: {said};"
            f" critical difference {item['critical_difference']:.2f}.",
        ]
    return "\n".join(parts) + "\n"


def _with_spread(line: Line, figure: str) -> str:
    spread = line[f"{figure}_std"]
    return shown(line[figure]) + ("" if spread is None else f" ± {spread:.1f}")


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """compare.parquet: a row for each method, world and setting, figures as columns."""
    flat = []
    for row in rows:
        rest = {key: value for key, value in row.items() if key != "settings"}
        for setting, figures in row["settings"].items():
            if figures is not None:
                flat.append({**rest, "setting": setting, **figures})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(flat), sink)
    return sink.getvalue().to_pybytes()

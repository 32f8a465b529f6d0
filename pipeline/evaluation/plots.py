"""The four pictures of a run as PNG, for trackers and papers; report.html draws its own."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, SOFT, SEA, LEAF, SAND, ROCK = "#14252e", "#5b6d76", "#0b6e8a", "#3f8f5f", "#c9772b", "#8a94a0"
HEAT = LinearSegmentedColormap.from_list("sea", ["#eef3f3", "#0a6e8a"])
DPI = 110


def render(report: dict[str, Any]) -> dict[str, bytes]:
    """PNG bytes by name: matrix, tasks, parameters and, with an identifier, confusion."""
    figures = {"matrix": _matrix(report), "tasks": _tasks(report)}
    if report["groups"]:
        figures["parameters"] = _parameters(report)
    if report["identifier"]:
        figures["confusion"] = _confusion(report)
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.02, ha="left")
    return figure


def _grid(axes: Axes, values: np.ndarray, columns: list[str], rows: list[str]) -> None:
    """A heat map of percents with its numbers written in; NaN stays empty."""
    axes.imshow(np.ma.masked_invalid(values), cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value >= 72 else INK
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(
        top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize=8
    )
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0, top=False, bottom=False, left=False)
    axes.spines[:].set_visible(False)


def _matrix(report: dict[str, Any]) -> Figure:
    tasks = report["tasks"]
    rows = [report["zero_shot"], *report["matrix"]]
    values = np.array(rows, dtype=np.float64)
    size = len(tasks)
    figure = _figure(
        2.6 + 0.72 * size, 1.5 + 0.36 * size, f"Accuracy, {report['setting']} (percent)"
    )
    axes = figure.subplots()
    _grid(axes, values, tasks, ["zero-shot", *_stages(report)])
    axes.axhline(0.5, color=INK, linewidth=1)
    scores = ("transfer", "average", "last")
    text = "   ".join(f"{s.capitalize()} {_percent(report[s])}" for s in scores)
    axes.set_xlabel(text, color=INK, fontsize=9, fontweight="bold", labelpad=8)
    return figure


def _stages(report: dict[str, Any]) -> list[str]:
    """Labels of the matrix's rows."""
    names = ["+".join(tasks) for tasks in report["stages"]]
    return [f"{i} {name if len(name) < 25 else name[:24] + '…'}" for i, name in enumerate(names)]


def _tasks(report: dict[str, Any]) -> Figure:
    tasks, matrix = report["tasks"], np.array(report["matrix"], dtype=np.float64)
    oracle = np.array(report["matrix_oracle"], dtype=np.float64)
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = _figure(
        2.3 * columns + 0.4, 1.65 * lines + 0.5, "Accuracy of each task over the stages"
    )
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    stages = np.arange(len(matrix))
    learned = [stage for stage, names in enumerate(report["stages"]) for _ in names]
    for j, axes in enumerate(grid.flat):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, colors=SOFT)
        if j >= len(tasks):
            axes.set_visible(False)
            continue
        axes.axvspan(0, learned[j], color="#eef3f3", linewidth=0)
        if report["zero_shot"][j] is not None:
            axes.axhline(report["zero_shot"][j], color=ROCK, linewidth=1, linestyle="--")
        axes.plot(stages, oracle[:, j], color=LEAF, linewidth=1.3, linestyle=":")
        axes.plot(stages, matrix[:, j], color=SEA, linewidth=1.8)
        axes.plot(
            learned[j], matrix[learned[j], j], "o", mfc="white", mec=SAND, mew=1.6, markersize=5.5
        )
        axes.set(ylim=(-3, 103), xticks=stages, yticks=(0, 50, 100))
        axes.set_title(tasks[j], fontsize=9, color=INK, loc="left", pad=3)
    figure.supxlabel(
        "stage      solid: identified, dotted: given id, dashed: zero-shot, ring: learned here",
        fontsize=8,
        color=SOFT,
    )
    return figure


def _confusion(report: dict[str, Any]) -> Figure:
    identifier = report["identifier"]
    counts = np.array(identifier["confusion"], dtype=np.float64)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, columns = report["tasks"][: len(counts)], identifier["options"]
    title = "Identifier: answers after the last stage (percent)"
    figure = _figure(2.6 + 0.72 * len(columns), 1.5 + 0.36 * len(rows), title)
    axes = figure.subplots()
    _grid(axes, shares, columns, rows)
    axes.set_ylabel("true task", fontsize=8, color=SOFT)
    return figure


def _parameters(report: dict[str, Any]) -> Figure:
    groups = np.cumsum([group["parameters"]["group"] for group in report["groups"]]) / 1e6
    kept = [group["parameters"].get("identifier") or 0 for group in report["groups"]]
    identifier = np.cumsum(kept) / 1e6
    figure = _figure(6.0, 3.0, "Parameters added to the backbone (millions)")
    axes = figure.subplots()
    names = [f"{group['stage']} {group['task']}" for group in report["groups"]]
    axes.bar(names, groups, color=SEA, width=0.62, label="groups")
    axes.bar(names, identifier, bottom=groups, color=LEAF, width=0.62, label="signatures")
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=SOFT)
    axes.tick_params(axis="x", rotation=20)
    return figure


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def curve(points: list[dict[str, float]], alone: dict[str, float]) -> bytes:
    """PNG: accuracy of the cascade against its calls, with others as level lines; percent."""
    figure = _figure(6.0, 4.0, "Accuracy and calls of the cascade")
    axes = figure.add_subplot()
    calls = [point["calls"] for point in points]
    axes.plot(calls, [point["accuracy"] for point in points], marker="o", label="cascade")
    for index, (name, accuracy) in enumerate(alone.items()):
        axes.axhline(accuracy, linestyle="--", linewidth=1, color=f"C{index + 1}", label=name)
    axes.set_xlabel("images that the multimodal model is asked about, percent")
    axes.set_ylabel("images given to their own task, percent")
    axes.legend(fontsize=8)
    return _png(figure)

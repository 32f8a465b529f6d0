"""What a run stored and how long it took: parameters, bytes, seconds, lineage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from archipelago.pipeline.evaluation.records import Records
from archipelago.pipeline.records.card import data_of, descriptions
from archipelago.pipeline.store import GroupRef


def parameters(records: Records) -> dict[str, Any]:
    """Stored numbers: experts and routers per group, everything the identifier keeps, the backbone.

    `total` is what learning added to the backbone.
    """
    counts = [card["parameters"] for _, card in records.groups]
    per_group = [count["group"] for count in counts]
    identifier = sum(count.get("identifier") or 0 for count in counts)
    return {
        "per_group": per_group,
        "identifier": identifier,
        "total": sum(per_group) + identifier,
        "backbone": records.run["backbone"].get("parameters"),
    }


def stored_bytes(records: Records) -> dict[str, Any]:
    """Bytes on disk per group folder, and how much of all of them is signatures and probes."""
    sizes = [card["bytes"] for _, card in records.groups]
    parts = {part: sum(size.get(part) or 0 for size in sizes) for part in ("identity", "probe")}
    per_group = [size["group"] for size in sizes]
    return {"per_group": per_group, **parts, "total": sum(per_group) + sum(parts.values())}


def seconds(records: Records, references: Iterable[Records] = ()) -> dict[str, Any]:
    """Wall time. `overhead` is what was neither training, evaluation, decoding of images nor a
    reference method at work; what happened side by side counts once in it.

    `total` adds up the sessions of the driver: time between an interruption and the next start
    does not count, nor does a session that found everything done.
    """
    sessions = _busy(records)
    events = [event for session in sessions for event in session]
    train = _sum(events, "stage-trained")
    prepare = _sum(events, "prepared")
    evaluate = sum(float(record.get("seconds") or 0) for record in records.evaluations.values())
    total = sum(_span(session) for session in sessions)
    beside = sum(_span(session) for other in references for session in _busy(other))
    alone = prepare + beside  # nothing else happens meanwhile
    measured = {int(e["stage"]): e for e in events if e["event"] == "evaluated"}
    spans = [span for event in events if _trained(event) for span in _trained_spans(event)]
    for stage, record in records.evaluations.items():
        taken = float(record.get("seconds") or 0)
        if stage in measured:
            spans.append(_until(measured[stage]["time"], taken))
        else:
            alone += taken
    overhead = max(total - _union(spans) - alone, 0.0)
    return {
        "total": total,
        "train": train,
        "evaluate": evaluate,
        "prepare": prepare,
        "references": beside,
        "overhead": overhead,
        "overhead_per_stage": overhead / len(records.groups) if records.groups else None,
    }


def stage_seconds(records: Records, stage: int) -> dict[str, float | None]:
    """Wall time of a stage: statistics of its images, its closed form, its group."""
    found: dict[str, float | None] = {"features": None, "head": None, "group": None}
    for event in records.events:
        if event.get("stage") == stage and event["event"] == "stage-done":
            spent = event.get("seconds") or {}
            found |= {"features": spent.get("look"), "head": spent.get("fit")}
        if event.get("stage") == stage and event["event"] == "refined":
            found["group"] = (event.get("seconds") or {}).get("fit")
    return found


def lineage(ref: GroupRef, card: dict[str, Any]) -> dict[str, Any]:
    """Where a group comes from: data, neighbours, parent, and what it costs."""
    return {
        "stage": ref.stage,
        "task": ref.name,
        "sha256": ref.sha256,
        "parent": card["parent"],
        "neighbours": card["neighbours"],
        **data_of(card),
        "descriptions": descriptions(card),
        "parameters": card["parameters"],
        "bytes": card["bytes"],
    }


def _sum(events: list[dict[str, Any]], name: str) -> float:
    """Seconds that events of this name report."""
    return sum(_spent(event) for event in events if event["event"] == name)


def _spent(event: dict[str, Any]) -> float:
    """Seconds that an event reports, whether as a number or split into parts."""
    value = event.get("seconds") or 0.0
    return float(sum(value.values()) if isinstance(value, dict) else value)


def _trained(event: dict[str, Any]) -> bool:
    return event["event"] == "stage-trained"


def _trained_spans(event: dict[str, Any]) -> list[tuple[float, float]]:
    """When a stage was looked at, which may be long before, and when it was trained."""
    spent, end = _spent(event), event.get("until") or event["time"]
    if not event.get("looked"):
        return [_until(end, spent)]
    look = float(event["seconds"]["look"])
    return [_until(event["looked"], look), _until(end, spent - look)]


def _until(end: str, seconds: float) -> tuple[float, float]:
    """The span of time that ended then, in seconds since 1970."""
    at = datetime.fromisoformat(end).timestamp()
    return at - seconds, at


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that lie in any of these spans."""
    covered, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def _sessions(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The journal cut where a driver started."""
    sessions: list[list[dict[str, Any]]] = []
    for event in events:
        if event["event"] == "run-started" or not sessions:
            sessions.append([])
        sessions[-1].append(event)
    return sessions


def _busy(records: Records) -> list[list[dict[str, Any]]]:
    """Events of the sessions that found anything to do."""
    return [session for session in _sessions(records.events) if not _idle(session)]


def _idle(session: list[dict[str, Any]]) -> bool:
    names = {event["event"] for event in session}
    return "run-done" in names and names <= {"run-started", "prepared", "run-done"}


def _span(session: list[dict[str, Any]]) -> float:
    first, last = (datetime.fromisoformat(session[at]["time"]) for at in (0, -1))
    return (last - first).total_seconds()

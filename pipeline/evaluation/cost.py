"""What a run stored and how long it took: parameters, bytes, seconds, lineage."""

from __future__ import annotations

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
    reference method at work.

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
    overhead = max(total - train - evaluate - prepare - beside, 0.0)
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
    """Seconds that events of this name report, whether as a number or split into parts."""
    spent = 0.0
    for event in events:
        if event["event"] == name:
            value = event.get("seconds") or 0.0
            spent += sum(value.values()) if isinstance(value, dict) else float(value)
    return spent


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

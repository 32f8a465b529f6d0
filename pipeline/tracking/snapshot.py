"""What tracking reads from a run folder, in one piece."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import jsonschema

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.records.evaluation import read_evaluation
from archipelago.pipeline.store import (
    Folder,
    GroupRef,
    Manifest,
    RunFolder,
    documents,
    names,
    sha256,
)

FILES = ("run.json", "report.json", "report.html", "matrix.parquet", "confusion.parquet")

POINTER = "serving.json"  # the publisher's
_NUMBER = {"type": ["number", "null"]}
# What is read of these files; they hold more.
REPORT = {
    "type": "object",
    "properties": {
        **dict.fromkeys(
            ("transfer", "average", "last", "forgetting", "bwt", "last_oracle", "delta_m"), _NUMBER
        ),
        "seconds": {"type": "object", "additionalProperties": _NUMBER},
    },
}
CALLS = {
    "type": "array",
    "items": {
        "type": ["object", "null"],
        "required": ["began", "kind", "task", "asked", "model", "seconds", "answer"],
        "properties": {
            **{key: {"type": "number"} for key in ("began", "seconds")},
            **{key: {"type": "string"} for key in ("kind", "task")},
        },
    },
}


@dataclass(frozen=True)
class Snapshot:
    """A run as it is now. `key` names it in MLflow: its place and its first start.

    `groups` are those that answer, by stage; `superseded` those that earlier manifests hold: a
    closed form that got a trained group, a group that was mixed anew.
    """

    run: RunFolder
    facts: dict[str, Any]
    events: list[dict[str, Any]]
    groups: dict[int, tuple[GroupRef, dict[str, Any]]]
    superseded: list[tuple[GroupRef, dict[str, Any]]]
    evaluations: dict[int, dict[str, Any]]
    manifests: list[Manifest]

    @classmethod
    def take(cls, run: RunFolder) -> Snapshot:
        """Read everything but the large files.

        Raises: UserError where there is no run; IntegrityError, naming a file that is damaged.
        """
        facts = run.read()
        stored = [(ref, json.loads(run.groups.read(ref, names.TASK))) for ref in run.groups.list()]
        current = {(ref.stage, ref.sha256) for ref in run.current_groups()}
        groups = {r.stage: (r, card) for r, card in stored if (r.stage, r.sha256) in current}
        superseded = [(r, card) for r, card in stored if (r.stage, r.sha256) not in current]
        evaluations = {}
        for stage in range(len(facts["stream"]["tasks"])):
            if (record := read_evaluation(run.folder, stage)) is not None:
                evaluations[stage] = record
        manifests = [run.models.read(version) for version in run.models.versions()]
        return cls(run, facts, run.journal.events(), groups, superseded, evaluations, manifests)

    @property
    def place(self) -> str:
        """Address of the run, without credentials."""
        return self.run.folder.shown()

    @cached_property
    def key(self) -> str:
        """32 hex digits; another run in the same place gets another key."""
        born = self.events[0]["time"] if self.events else ""
        return sha256(f"{self.place}\n{born}".encode())[:32]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved, redacted settings."""
        return self.facts["config"]

    @property
    def stages(self) -> list[int]:
        """Stages of which anything is known to be done."""
        return sorted(self.groups.keys() | self.evaluations.keys())

    @cached_property
    def erased(self) -> set[int]:
        """Stages whose domain was forgotten for good: MLflow shows no run of theirs."""
        last = {e["stage"]: e for e in self.events if e["event"] in ("stage-done", "forgotten")}
        return {stage for stage, event in last.items() if event.get("erased")}

    def served(self) -> str | None:
        """sha256 of the manifest that answers requests at this moment; None where none does."""
        try:
            return str(self.run.folder.read_json(POINTER)["sha256"]) or None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The run's small result files by name."""
        found = [name for name in FILES if self.run.folder.exists(name)]
        found += self.run.folder.list("plots/")
        return {name: self.run.folder.read(name) for name in found}

    @cached_property
    def calls(self) -> dict[str, dict[str, Any]]:
        """Recorded calls of the multimodal model by a name that stays."""
        folder = self.run.folder.child("identifier/traces")
        return {
            f"{name.removesuffix('.json')}/{index}": call
            for name in sorted(folder.list())
            for index, call in enumerate(self._listed(folder, name))
            if call  # null: it was about a domain that is erased
        }

    @property
    def report(self) -> dict[str, Any]:
        """report.json, or nothing where none was written yet."""
        if "report.json" not in self.files:
            return {}
        try:
            document = documents.loads(self.files["report.json"])
            jsonschema.validate(document, REPORT)
        except (ValueError, jsonschema.ValidationError):
            shown = self.run.folder.shown("report.json")
            raise IntegrityError(
                f"{shown} is damaged: delete it; the same run writes it again"
            ) from None
        return document

    @staticmethod
    def _listed(folder: Folder, name: str) -> list[dict[str, Any] | None]:
        try:
            calls = folder.read_json(name)
            jsonschema.validate(calls, CALLS)
        except (ValueError, jsonschema.ValidationError):
            raise IntegrityError(
                f"{folder.shown(name)} is damaged: delete it; the calls it held are lost"
            ) from None
        return calls

    @property
    def status(self) -> str:
        """MLflow's word for the state of the run."""
        for event in reversed(self.events):
            if event["event"] in ENDS:
                return ENDS[event["event"]]
            if event["event"] == "run-started":
                break
        return "RUNNING"

    def task(self, stage: int) -> str:
        """Name of a stage's task."""
        listed = self.facts["stream"].get("stages")
        return "+".join(listed[stage]) if listed else self.facts["stream"]["tasks"][stage]

    def event(self, name: str, stage: int) -> dict[str, Any]:
        """The latest event of that name about a stage, or an empty one."""
        found = (e for e in reversed(self.events) if e["event"] == name and e.get("stage") == stage)
        return next(found, {})

    def time(self, stage: int | None = None, name: str = "evaluated") -> int:
        """Milliseconds of a stage's event, or of the last one: the same at every sync."""
        event = self.event(name, stage) if stage is not None else {}
        if not event and self.events:
            event = self.events[-1 if stage is None else 0]
        return _milliseconds(event["time"]) if event else 0

    @property
    def born(self) -> int:
        """Milliseconds of the first event."""
        return _milliseconds(self.events[0]["time"]) if self.events else 0


ENDS = {"run-done": "FINISHED", "stopped": "KILLED"}


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)

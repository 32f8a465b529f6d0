"""The record of a stage: what it trained and one record for each of its tasks, on disk a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.records.task import Arrays, TaskRecord
from archipelago.pipeline.store import GroupRef, RunFolder, documents, names
from archipelago.pipeline.store.groups import GroupStore
from archipelago.pipeline.store.tensors import dump, load


@dataclass(frozen=True, eq=False)
class GroupRecord:
    """One finished stage.

    Attributes:
        stage: its number, from 0.
        name: that of its task, or of several.
        method: who learned it.
        tasks: one record a task, also where there is only one.
        tensors: what was trained; empty where nothing was.
        neighbours: groups it borrows from: `task`, `distance`, `gain`, `sha256`.
        parameters: trained numbers.
        parent: sha256 of the group learned before it.
        experts: how tasks use experts.
        remixed: the group that this one replaces without a forgotten neighbour.
        ref: where it is stored; None before it is.
        weights: sha256 of the stored `tensors`, None before they are: equal weights, equal hashes.
    """

    stage: int
    name: str
    method: str
    tasks: tuple[TaskRecord, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    neighbours: tuple[Mapping[str, Any], ...] = ()
    parameters: int = 0
    parent: str | None = None
    experts: Mapping[str, Any] | None = None
    remixed: str | None = None
    ref: GroupRef | None = None
    weights: str | None = None

    def with_tasks(self, tasks: Sequence[TaskRecord]) -> GroupRecord:
        """The same stage with other records of its tasks."""
        return replace(self, tasks=tuple(tasks))

    def files(self) -> dict[str, bytes]:
        """Bytes of every file by name: equal records give equal bytes."""
        identity = {f"{t.name}/{k}": v for t in self.tasks for k, v in t.identity().items()}
        probe: Arrays = {}
        for task in self.tasks:
            stored = task.outputs if task.probe is None else task.probe.arrays()
            probe |= {f"{task.name}/{key}": value for key, value in stored.items()}
        found = {
            names.GROUP: dump(self.tensors),
            names.IDENTITY: dump(identity),
            names.PROBE: dump(probe),
        }
        card = {
            "schema": names.SCHEMA,
            "stage": self.stage,
            "name": self.name,
            "method": self.method,
            "tasks": [task.card() for task in self.tasks],
            "neighbours": list(self.neighbours),
            "parameters": {
                "group": self.parameters,
                "identifier": sum(task.numbers for task in self.tasks),
            },
            "bytes": {
                "group": len(found[names.GROUP]),
                "identity": len(found[names.IDENTITY]),
                "probe": len(found[names.PROBE]),
            },
            "parent": self.parent,
            "remixed": self.remixed,
        }
        found[names.TASK] = documents.dumps(card)
        if self.experts is not None:
            found[names.EXPERTS] = documents.dumps(self.experts)
        return found

    def write(self, groups: GroupStore, **how: bool) -> GroupRecord:
        """Store it, see `GroupStore.write`; returns the record that knows where it is."""
        ref = groups.write(self.stage, self.name, self.files(), **how)
        return replace(self, ref=ref, weights=groups.files(ref)[names.GROUP])

    @classmethod
    def read(cls, run: RunFolder, ref: GroupRef) -> GroupRecord:
        """A stored stage; every file is checked against its hash.

        Raises:
            IntegrityError: a file is missing, altered, or not what it should be.
        """
        groups = run.groups
        card = read_card(run, ref)
        try:
            identity, probe = (
                _numpy(load(groups.read(ref, file), f"{ref.folder}/{file}"))
                for file in (names.IDENTITY, names.PROBE)
            )
            experts = None
            if names.EXPERTS in groups.files(ref):
                experts = documents.loads(groups.read(ref, names.EXPERTS))
            return cls(
                stage=card["stage"],
                name=card["name"],
                method=card["method"],
                tasks=tuple(
                    TaskRecord.load(part, _of(identity, part["name"]), _of(probe, part["name"]))
                    for part in card["tasks"]
                ),
                tensors=load(groups.read(ref, names.GROUP), f"{ref.folder}/{names.GROUP}"),
                neighbours=tuple(card["neighbours"]),
                parameters=card["parameters"]["group"],
                parent=card["parent"],
                experts=experts,
                remixed=card["remixed"],
                ref=ref,
                weights=weights_hash(run, ref),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            words = " ".join(str(error).split())
            raise IntegrityError(
                f"{run.folder.shown('groups')}/{ref.folder} is not readable ({words})"
            ) from None


def read_card(run: RunFolder, ref: GroupRef) -> dict[str, Any]:
    """`task.json` of a stored stage.

    Raises:
        IntegrityError: it is missing, altered, or of another version.
    """
    where = f"{run.folder.shown('groups')}/{ref.folder}/{names.TASK}"
    try:
        card = documents.loads(run.groups.read(ref, names.TASK))
    except ValueError:
        raise IntegrityError(f"{where} is not JSON") from None
    if not isinstance(card, dict) or card.get("schema") != names.SCHEMA:
        raise IntegrityError(f"{where} is not of schema {names.SCHEMA}: learn the run anew")
    return card


def _numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _of(arrays: Arrays, task: str) -> Arrays:
    """One task's arrays, without its name."""
    prefix = f"{task}/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def weights_hash(run: RunFolder, ref: GroupRef) -> str:
    """sha256 of what a stage trained: equal weights have equal hashes, whatever else was stored."""
    return run.groups.files(ref)[names.GROUP]

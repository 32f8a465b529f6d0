"""What a stage is to its workers, and what they bring home: small values, safe to send anywhere."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from archipelago.pipeline.methods import Neighbour
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder, GroupRef, RunFolder, names
from archipelago.pipeline.store.tensors import dump
from archipelago.pipeline.streams import PreparedDomain, Stage

GROUP, PROBE = names.GROUP, names.PROBE
CLASSES, FACTS = "classes.safetensors", "facts.json"
FINAL = "final"  # of an attempt: its last checkpoint, with the outcome beside it


@dataclass(frozen=True)
class StageSpec:
    """What a worker needs to know; small, and safe to send anywhere."""

    settings: Settings
    run: str
    kernels: Kernels
    stage: int
    domains: tuple[PreparedDomain, ...]
    earlier: tuple[GroupRef, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    attempt: int = 1
    threads: int = 0
    resume: str | None = None

    @property
    def seeding(self) -> int:
        """What batch order and noise are seeded by: the names of the tasks, not their place."""
        return zlib.crc32("\n".join(domain.name for domain in self.domains).encode())

    @property
    def name(self) -> str:
        """Name of the stage."""
        return Stage(self.stage, tuple(domain.name for domain in self.domains)).name

    def plain(self) -> dict[str, Any]:
        """As plain data, so that who only passes it on need not import what it is made of."""
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> StageSpec:
        """Inverse of `plain`."""
        return cls(
            **{
                **plain,
                "settings": Settings.model_validate(plain["settings"]),
                "kernels": Kernels(**plain["kernels"]),
                "domains": tuple(PreparedDomain(**domain) for domain in plain["domains"]),
                "earlier": tuple(GroupRef(**ref) for ref in plain["earlier"]),
                "neighbours": tuple(Neighbour(**n) for n in plain["neighbours"]),
            }
        )


@dataclass
class Outcome:
    """What rank 0 brings home: files of the group, and facts for the journal.

    Names in `probe` begin with `<task>/`; `classes` has a tensor a task.
    """

    group: dict[str, torch.Tensor]
    probe: dict[str, torch.Tensor]
    classes: dict[str, torch.Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write beside a checkpoint."""
        (folder / GROUP).write_bytes(dump(self.group))
        (folder / PROBE).write_bytes(dump(self.probe))
        (folder / CLASSES).write_bytes(dump(self.classes))
        (folder / FACTS).write_text(json.dumps(self.facts))


def stage_folder(run: RunFolder, spec: StageSpec) -> Folder:
    """Where all attempts of a stage keep their checkpoints until the stage is done."""
    return run.folder.child(f"train/{spec.stage:03d}-{spec.name}")


def attempt_folder(spec: StageSpec) -> Folder:
    """Where one attempt at a stage keeps its checkpoints."""
    return stage_folder(RunFolder(spec.run, read_only=True), spec).child(f"attempt-{spec.attempt}")

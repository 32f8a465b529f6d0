"""Checkpoints of a pretraining: safetensors and JSON in a folder that all workers see.

A checkpoint is complete when `state.json` names the sha256 of `state.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.pretraining.loop import State
from archipelago.pipeline.store import sha256
from archipelago.pipeline.store.tensors import dump, load

TENSORS, FACTS = "state.safetensors", "state.json"


def save(folder: Path, state: State) -> None:
    """Write a state into an empty folder."""
    tensors = {f"weights/{k}": v for k, v in state.weights.items()}
    tensors |= {f"average/{k}": v for k, v in state.average.items()}
    for index, values in state.optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    data = dump(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TENSORS).write_bytes(data)
    facts = {"step": state.step, "groups": state.optimizer["param_groups"], "sha256": sha256(data)}
    (folder / FACTS).write_text(json.dumps(facts))


def restore(folder: Path) -> State:
    """Read a state back.

    Raises:
        IntegrityError: the folder is incomplete or damaged.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        data = (folder / TENSORS).read_bytes()
    except (FileNotFoundError, ValueError) as error:
        raise IntegrityError(f"{folder} is no complete checkpoint") from error
    if sha256(data) != facts["sha256"]:
        raise IntegrityError(f"{folder / TENSORS} does not match its sha256")
    weights: dict[str, Tensor] = {}
    average: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load(data, TENSORS).items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, key = rest.split("/")
            moments.setdefault(int(index), {})[key] = tensor
        else:
            (weights if kind == "weights" else average)[rest] = tensor
    optimizer = {"state": moments, "param_groups": facts["groups"]}
    return State(int(facts["step"]), weights, average, optimizer)


def newest(folder: Path) -> State | None:
    """The complete checkpoint with the most steps in `folder/<attempt>/<checkpoint>/`."""
    found: list[tuple[int, Path]] = []
    for facts in folder.glob(f"*/*/{FACTS}"):
        try:
            found.append((int(json.loads(facts.read_text())["step"]), facts.parent))
        except (OSError, ValueError, KeyError):
            continue
    for _, place in sorted(found, reverse=True):
        try:
            return restore(place)
        except IntegrityError:
            continue
    return None

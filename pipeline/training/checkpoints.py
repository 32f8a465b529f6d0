"""Checkpoints of a stage: safetensors and JSON, no pickle; one format in process and under Ray.

A checkpoint folder is complete when `state.json` names the sha256 of `state.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import IntegrityError
from pipeline.store import Folder, sha256
from pipeline.store.tensors import dump, load
from pipeline.training.loop import TrainingState

TENSORS, FACTS = "state.safetensors", "state.json"


def save(folder: Path, state: TrainingState) -> None:
    """Write a state into an empty local folder."""
    tensors = {f"adapter/{k}": v for k, v in state.adapter.items()}
    tensors |= {f"best/{k}": v for k, v in state.best.items()}
    for index, values in state.optimizer.get("state", {}).items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    tensors["rng"] = torch.get_rng_state()
    data = dump(tensors)
    (folder / TENSORS).write_bytes(data)
    facts = {
        "step": state.step,
        "best_step": state.best_step,
        "best_accuracy": state.best_accuracy,
        "best_loss": state.best_loss,
        "groups": state.optimizer.get("param_groups", []),
        "sha256": sha256(data),
    }
    (folder / FACTS).write_text(json.dumps(facts))


def restore(folder: Folder) -> TrainingState:
    """Read a state back; the random state of torch is set with it.

    Raises:
        IntegrityError: the folder is incomplete or damaged.
    """
    try:
        facts = json.loads(folder.read(FACTS))
        data = folder.read(TENSORS)
    except (FileNotFoundError, ValueError) as error:
        raise IntegrityError(f"{folder.uri} is no complete checkpoint") from error
    if sha256(data) != facts["sha256"]:
        raise IntegrityError(f"{folder.uri}/{TENSORS} does not match its sha256")
    parts: dict[str, Any] = {"adapter": {}, "best": {}, "optimizer": {}}
    for name, tensor in load(data, TENSORS).items():
        kind, _, rest = name.partition("/")
        if kind == "rng":
            torch.set_rng_state(tensor)
        elif kind == "optimizer":
            index, key = rest.split("/")
            parts["optimizer"].setdefault(int(index), {})[key] = tensor
        else:
            parts[kind][rest] = tensor
    optimizer = {"state": parts["optimizer"], "param_groups": facts["groups"]}
    return TrainingState(
        facts["step"], parts["adapter"], optimizer, parts["best"],
        facts["best_step"], facts["best_accuracy"], facts["best_loss"],
    )  # fmt: skip


def newest(folder: Folder) -> Folder | None:
    """The complete checkpoint with the most steps in `folder/<attempt>/<checkpoint>/`."""
    best: tuple[int, str] | None = None
    for attempt in folder.list():
        for name in folder.list(f"{attempt}/"):
            step = _complete_step(folder, name)
            if step is not None and (best is None or step >= best[0]):
                best = (step, name)
    return None if best is None else folder.child(best[1])


def _complete_step(folder: Folder, name: str) -> int | None:
    try:
        facts = json.loads(folder.read(f"{name}/{FACTS}"))
        intact = sha256(folder.read(f"{name}/{TENSORS}")) == facts["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    return int(facts["step"]) if intact else None

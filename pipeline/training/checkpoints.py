"""Checkpoints of a stage: safetensors and JSON, no pickle; alike in process and under Ray.

A checkpoint folder is complete when `state.json` names the sha256 of `state.safetensors`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import Folder, sha256
from archipelago.pipeline.store.tensors import dump, load
from archipelago.pipeline.training.loop import TrainingState
from archipelago.pipeline.training.spec import FINAL, Outcome, StageSpec, attempt_folder

log = logging.getLogger(__name__)

TENSORS, FACTS = "state.safetensors", "state.json"
KEPT = 2
KINDS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "best_step": (int,),
    "best_accuracy": (int, float),
    "best_loss": (int, float),
    "groups": (list,),
    "sha256": (str,),
}


class Keeper:
    """Writes the checkpoints of an attempt at a stage where the run lies; what `run_stage` calls.

    The last one, `final`, has the outcome beside it; of those before the newest two are kept.
    """

    def __init__(self, spec: StageSpec) -> None:
        self._attempt = attempt_folder(spec)
        self._kept: list[str] = []

    def __call__(
        self, metrics: dict[str, Any], state: TrainingState | None, outcome: Outcome | None
    ) -> None:
        """Write a state, and the outcome where there is one."""
        if state is None:
            return
        name = f"checkpoint-{state.step:06d}" if outcome is None else FINAL
        target = self._attempt.child(name)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary)
            save(local, state)
            if outcome is not None:
                outcome.save(local)
            for file in sorted(local.iterdir(), key=lambda f: f.name == FACTS):
                target.write(file.name, file.read_bytes())
        self._kept.append(name)
        for old in self._kept[:-KEPT]:
            self._attempt.delete_tree(old)
        del self._kept[:-KEPT]


def save(folder: Path, state: TrainingState) -> None:
    """Write a state into an empty local folder."""
    tensors = {f"adapter/{k}": v for k, v in state.adapter.items()}
    tensors |= {f"best/{k}": v for k, v in state.best.items()}
    tensors |= {f"averaged/{k}": v for k, v in state.averaged.items()}
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
        facts, data = _read(folder)
    except FileNotFoundError:
        raise IntegrityError(f"{folder.shown()} is no complete checkpoint") from None
    parts: dict[str, Any] = {"adapter": {}, "best": {}, "averaged": {}, "optimizer": {}}
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
        facts["step"],
        parts["adapter"],
        optimizer,
        parts["best"],
        facts["best_step"],
        facts["best_accuracy"],
        facts["best_loss"],
        parts["averaged"],
    )


def newest(folder: Folder) -> Folder | None:
    """The complete checkpoint with the most steps in `folder/<attempt>/<checkpoint>/`.

    One that is damaged is told of and passed over; training goes on from an older one.
    """
    best: tuple[int, str] | None = None
    for attempt in folder.list():
        for name in folder.list(f"{attempt}/"):
            step = _complete_step(folder.child(name))
            if step is not None and (best is None or step >= best[0]):
                best = (step, name)
    return None if best is None else folder.child(best[1])


def _complete_step(folder: Folder) -> int | None:
    try:
        return int(_read(folder)[0]["step"])
    except IntegrityError as error:
        log.warning("%s; it is passed over", error)
    except OSError:  # not a folder, or its writer was killed before it was complete
        pass
    return None


def _read(folder: Folder) -> tuple[dict[str, Any], bytes]:
    """Facts and tensors of a checkpoint. Raises: IntegrityError where it is damaged; OSError."""
    try:
        facts = json.loads(folder.read(FACTS))
    except (ValueError, RecursionError):
        raise IntegrityError(f"{folder.shown(FACTS)} is not JSON") from None
    if wrong := _misshapen(facts):
        raise IntegrityError(f"{folder.shown(FACTS)} has another shape at {wrong}")
    data = folder.read(TENSORS)
    if sha256(data) != facts["sha256"]:
        raise IntegrityError(f"{folder.shown(TENSORS)} does not match its sha256")
    return facts, data


def _misshapen(facts: Any) -> str | None:
    """The first fact that is not what `save` writes."""
    if not isinstance(facts, dict):
        return "the document"
    for key, kinds in KINDS.items():
        value = facts.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return key
    if facts["step"] < 0 or any(facts[key] != facts[key] for key in ("best_accuracy", "best_loss")):
        return "step, best_accuracy or best_loss"
    groups = facts["groups"]
    sound = all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)
    return None if sound else "groups"

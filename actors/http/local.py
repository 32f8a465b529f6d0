"""A model in this process as a backend, and what a model says of itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from actors.http.backend import Reply
from pipeline.serving.asking import Ask
from pipeline.serving.library import LearnedTask
from pipeline.serving.model import ServedModel
from pipeline.serving.pointer import history, read_pointer
from pipeline.serving.snapshot import Snapshot

EXAMPLES = 6  # probe images shown of a task


_SAID: WeakKeyDictionary[ServedModel, tuple[Any, dict[str, Any]]] = WeakKeyDictionary()


def describe(model: ServedModel) -> dict[str, Any]:
    """What a model says of itself; made once for a generation and the manifests that there are.

    Pages ask every few seconds, and the history alone is many files.
    """
    snapshot, latest = model.current, tuple(model.run.models.versions())
    pointer = snapshot.pointer
    key = (pointer, read_pointer(model.run), latest)
    known = _SAID.get(model)
    if known is not None and known[0] == key:
        return known[1]
    said = _describe(model, snapshot, latest)
    _SAID[model] = (key, said)
    return said


def _describe(model: ServedModel, snapshot: Snapshot, latest: tuple[int, ...]) -> dict[str, Any]:
    document, pointer = model.run.read(), snapshot.pointer
    return {
        "generation": pointer.generation,
        "manifest": pointer.manifest,
        "sha256": pointer.sha256,
        "backbone": document["backbone"]["name"],
        "method": model.settings.method.name,
        "image_size": model.backbone.image_size,
        "lambda": snapshot.weight,
        "candidates": [version for version in latest if version > pointer.manifest],
        "history": history(model.run),
        "tasks": [_task(task) for task in snapshot.tasks.values()],
    }


def _task(task: LearnedTask) -> dict[str, Any]:
    card, where = task.card, f"/v1/tasks/{quote(task.name, safe='')}"
    return {
        "name": task.name,
        "stage": task.ref.stage,
        "description": _description(card),
        "classes": list(task.classes),
        "templates": list(card["templates"]),
        "neighbours": [neighbour["task"] for neighbour in card["neighbours"]],
        "lineage": f"{where}/lineage",
        "examples": [
            f"{where}/examples/{index}" for index in range(min(EXAMPLES, len(task.probe.images)))
        ],
    }


def _description(card: Any) -> str | None:
    found = card.get("description")
    if isinstance(found, dict):
        found = found.get("text")
    return found if isinstance(found, str) else None


def lineage(snapshot: Snapshot, task: str) -> dict[str, Any] | None:
    """Where a domain's group comes from: data, parent, neighbours, hashes."""
    found = snapshot.tasks.get(task)
    if found is None:
        return None
    keys = ("digests", "counts", "method", "neighbours", "parameters", "bytes", "parent")
    return {
        "task": task,
        "group": found.ref.folder,
        "sha256": found.ref.sha256,
        **{key: found.card.get(key) for key in keys},
    }


def example(snapshot: Snapshot, task: str, index: int) -> bytes | None:
    """A stored image of a domain as PNG."""
    found = snapshot.tasks.get(task)
    if found is None or not 0 <= index < min(EXAMPLES, len(found.probe.images)):
        return None
    file = io.BytesIO()
    Image.fromarray(found.probe.images[index]).save(file, "PNG")
    return file.getvalue()


class LocalBackend:
    """A model in this process: for tests, notebooks and one-process use. No admin."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._turn = asyncio.Lock()

    async def image_size(self) -> int:
        """Side of the model's input."""
        return self.model.backbone.image_size

    async def classify(self, images: np.ndarray, asks: Sequence[Ask]) -> Reply:
        """Answer in a thread, one request at a time."""
        async with self._turn:
            try:
                found = await asyncio.to_thread(self.model.classify, images, asks)
            except KeyError as error:
                return Reply(0, unknown=str(error.args[0]))
        return Reply(found[0], tuple(found[1]), found[2])

    async def describe(self) -> dict[str, Any]:
        """See `describe`."""
        return describe(self.model)

    async def lineage(self, task: str) -> dict[str, Any] | None:
        """See `lineage`."""
        return lineage(self.model.current, task)

    async def example(self, task: str, index: int) -> bytes | None:
        """See `example`."""
        return example(self.model.current, task, index)

    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """There is no publisher here."""
        raise NotImplementedError(verb)

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

from archipelago.actors.http.backend import Reply, Vectors
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.records import GroupRecord, TaskRecord
from archipelago.pipeline.records.card import data_of
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.serving.model import Generation, ServedModel
from archipelago.pipeline.serving.pointer import history, newest_pointer
from archipelago.pipeline.store import RunFolder

EXAMPLES = 6  # probe images shown of a task


_SAID: WeakKeyDictionary[ServedModel, tuple[Any, dict[str, Any]]] = WeakKeyDictionary()


def describe(model: ServedModel) -> dict[str, Any]:
    """What a model says of itself; made once for a generation and the manifests that there are.

    Pages ask every few seconds, and the history alone is many files.
    """
    generation, latest = model.current, tuple(model.run.models.versions())
    pointer = generation.pointer
    key = (pointer, newest_pointer(model.run), latest)
    known = _SAID.get(model)
    if known is not None and known[0] == key:
        return known[1]
    said = _describe(model, generation, latest)
    _SAID[model] = (key, said)
    return said


def _describe(
    model: ServedModel, generation: Generation, latest: tuple[int, ...]
) -> dict[str, Any]:
    document, pointer = model.run.read(), generation.pointer
    return {
        "generation": pointer.generation,
        "manifest": pointer.manifest,
        "sha256": pointer.sha256,
        "backbone": document["backbone"]["name"],
        "method": model.settings.method.name,
        "image_size": model.backbone.image_size,
        "lambda": generation.state.weight,
        "candidates": [version for version in latest if version > pointer.manifest],
        "history": history(model.run),
        "tasks": [_task(task, generation.group(name)) for name, task in generation.tasks.items()],
    }


def _task(task: TaskRecord, group: GroupRecord) -> dict[str, Any]:
    where = f"/v1/tasks/{quote(task.name, safe='')}"
    return {
        "name": task.name,
        "stage": group.stage,
        "description": None if task.description is None else task.description["text"],
        "classes": list(task.classes),
        "templates": list(task.templates),
        "neighbours": [neighbour["task"] for neighbour in group.neighbours],
        "lineage": f"{where}/lineage",
        "examples": [f"{where}/examples/{index}" for index in range(_examples(task))],
    }


def _examples(task: TaskRecord) -> int:
    return 0 if task.probe is None else min(EXAMPLES, len(task.probe.images))


def lineage(run: RunFolder, generation: Generation, task: str) -> dict[str, Any] | None:
    """Where a domain's group comes from: data, parent, neighbours, hashes."""
    if task not in generation.tasks:
        return None
    group = generation.group(task)
    assert group.ref is not None
    card = read_card(run, group.ref)
    data = data_of(card)
    keys = ("method", "neighbours", "parameters", "bytes", "parent")
    return {
        "task": task,
        "group": group.ref.folder,
        "sha256": group.ref.sha256,
        "digests": data["digests"],
        "counts": data["counts"],
        **{key: card.get(key) for key in keys},
    }


def example(generation: Generation, task: str, index: int) -> bytes | None:
    """A stored image of a domain as PNG."""
    found = generation.tasks.get(task)
    if found is None or found.probe is None or not 0 <= index < _examples(found):
        return None
    file = io.BytesIO()
    Image.fromarray(found.probe.images[index]).save(file, "PNG")
    return file.getvalue()


def embed(model: ServedModel, images: np.ndarray, texts: Sequence[str]) -> Vectors:
    """Vectors of images and texts; for one thread at a time."""
    generation, images_BF, texts_NF, spent = model.embed(images, texts)
    return Vectors(generation, model.backbone.name, images_BF, texts_NF, spent)


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

    async def embed(self, images: np.ndarray, texts: Sequence[str]) -> Vectors:
        """Embed in a thread, one request at a time."""
        async with self._turn:
            return await asyncio.to_thread(embed, self.model, images, texts)

    async def describe(self) -> dict[str, Any]:
        """See `describe`."""
        return describe(self.model)

    async def lineage(self, task: str) -> dict[str, Any] | None:
        """See `lineage`."""
        return lineage(self.model.run, self.model.current, task)

    async def example(self, task: str, index: int) -> bytes | None:
        """See `example`."""
        return example(self.model.current, task, index)

    async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """There is no publisher here."""
        raise NotImplementedError(verb)

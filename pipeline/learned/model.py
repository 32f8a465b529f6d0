"""The learned model of a run, from Python: no Ray, no server, finished or still learning.

    model = LearnedModel.open("runs/mine")
    model.answer(["seven.png", "rose.jpg"])                         # all learned classes
    model.answer(images, candidates=["cat", "dog"])                 # any names
    model.answer(images, task="pets")                               # the domain is known
    model.embed(images) @ model.embed_texts(["a cat"]).T            # cosines under frozen CLIP

What it answers is what evaluation measures and what an endpoint serves.

Shapes: B images, N texts, F embedding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifiers import Evidence, Identification
from archipelago.pipeline.learned.asking import Answer
from archipelago.pipeline.learned.candidates import Candidate
from archipelago.pipeline.learned.inputs import Picture, pixels
from archipelago.pipeline.learned.runtime import Runtime, Wish
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.records import TaskRecord
from archipelago.pipeline.store import RunFolder

PASS = 64  # images in one pass: bounds memory whatever is asked
Asked = str | tuple[str, str] | Candidate  # a name, (domain, name), or with templates


class LearnedModel:
    """A state of a run, ready to answer.

    Args:
        runtime: the run in this process.
        state: what answers.
    """

    def __init__(self, runtime: Runtime, state: State) -> None:
        self.runtime = runtime
        self.state = state
        self.texts = runtime.texts(state)

    @classmethod
    def open(
        cls, run: str | os.PathLike[str], manifest: int | None = None, device: str = "auto"
    ) -> LearnedModel:
        """The model of a run folder.

        Args:
            run: a path or a URI.
            manifest: which version; None = the newest, or frozen CLIP before the first.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            UserError: not a run, no such manifest, or another backbone than the run's.
            IntegrityError: a file is missing or altered.
        """
        folder = RunFolder.open(run)
        versions = folder.models.versions()
        if manifest is not None and manifest not in versions:
            known = ", ".join(map(str, versions)) or "none"
            raise UserError(f"manifest={manifest}: the run has {known}")
        chosen = manifest if manifest is not None else (versions[-1] if versions else None)
        refs = () if chosen is None else folder.models.read(chosen).groups
        gone = folder.erased(refs)
        if gone:
            raise UserError(
                f"manifest={chosen}: holds {', '.join(gone)}, whose files are erased; the newest,"
                f" {versions[-1]}, answers"
            )
        runtime = Runtime(folder, device)
        return cls(runtime, runtime.state(refs))

    @property
    def tasks(self) -> dict[str, TaskRecord]:
        """Learned domains with classes, in the order of learning."""
        return dict(self.state.records)

    def answer(
        self,
        images: Sequence[Picture] | np.ndarray,
        candidates: Sequence[Asked] | None = None,
        task: str | None = None,
        top_k: int = 5,
        abstain: float | None = None,
    ) -> list[Answer]:
        """What each image shows.

        Args:
            images: PIL images, paths, encoded bytes, or uint8 arrays (H, W, 3).
            candidates: what they may be: names, or (domain, name) pairs; None = all learned.
            task: the domain, where it is known.
            top_k: how many names come back for each.
            abstain: share of the learned domains' images that may be refused; None = none is.

        Raises:
            UserError: an image that cannot be read, or a domain that was not learned.
        """
        if task is not None and task not in self.state.records:
            known = ", ".join(self.state.records) or "none"
            raise UserError(f"task={task}: is not learned; learned are: {known}")
        asked = None if candidates is None else tuple(_candidate(item) for item in candidates)
        wish = Wish(asked, task, top_k)
        found: list[Answer] = []
        for part in self._passes(images):
            answers, _ = self.runtime.answer(
                self.state, self.texts, part, [wish] * len(part), abstain=abstain
            )
            found += answers
        return found

    def embed(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
        """Normalised image features (B, F) of frozen CLIP."""
        parts = [self.runtime.embed(part) for part in self._passes(images)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised text features (N, F) of frozen CLIP, of texts as they are written.

        Their products with those of `embed` are cosines. What exceeds the text tower's context is
        cut.

        Raises:
            UserError: one text instead of a list of them.
        """
        if isinstance(texts, str):
            raise UserError("texts: give a list of texts, not one text")
        return self.texts.embed(texts)

    def identify(self, images: Sequence[Picture] | np.ndarray) -> Identification:
        """Which domain each image is from, and how new it looks.

        Raises:
            UserError: the method does not tell domains apart.
        """
        if self.state.identifier is None:
            raise UserError(f"method {self.state.method.name} does not tell domains apart")
        parts = [
            self.runtime.view(self.state, part, self.texts).compact for part in self._passes(images)
        ]
        compact = np.concatenate(parts) if parts else np.zeros((0, self.runtime.basis.width))
        return self.state.identifier.alone.identify(Evidence(compact))

    def _passes(self, images: Sequence[Picture] | np.ndarray) -> list[np.ndarray]:
        size = self.runtime.backbone.image_size
        return [pixels(images[i : i + PASS], size) for i in range(0, len(images), PASS)]


def _candidate(item: Asked) -> Candidate:
    if isinstance(item, Candidate):
        return item
    return Candidate(item) if isinstance(item, str) else Candidate(item[1], item[0])

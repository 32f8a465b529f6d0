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
from collections.abc import Iterator, Sequence

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
        cls,
        run: str | os.PathLike[str],
        manifest: int | None = None,
        device: str = "auto",
        backbone: str | None = None,
    ) -> LearnedModel:
        """The model of a run folder.

        Args:
            run: a path or a URI.
            manifest: which version; 0 = frozen CLIP before the first; None = the newest.
            device: `auto`, `cpu` or `cuda`.
            backbone: where the same backbone lies on this machine, `local-dir:PATH` or a name; None
                = as the run names it.

        Raises:
            UserError: not a run, no such manifest, or another backbone than the run's.
            IntegrityError: a file is missing or altered.
        """
        folder = RunFolder.open(run)
        versions = folder.models.versions()
        if manifest is None:
            manifest = versions[-1] if versions else 0
        if manifest not in (0, *versions):
            known = ", ".join(map(str, versions)) or "none"
            raise UserError(f"manifest={manifest}: the run has {known}")
        refs = folder.models.read(manifest).groups if manifest else ()
        gone = folder.erased(refs)
        if gone:
            raise UserError(
                f"manifest={manifest}: holds {', '.join(gone)}, whose files are erased; the newest,"
                f" {versions[-1]}, answers"
            )
        runtime = Runtime(folder, device, backbone)
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
        batch_size: int = PASS,
    ) -> list[Answer]:
        """What each image shows.

        Args:
            images: PIL images, paths, encoded bytes, or uint8 arrays (H, W, 3).
            candidates: what they may be: names, or (domain, name) pairs; None = all learned.
            task: the domain, where it is known.
            top_k: how many names come back for each.
            abstain: share of the learned domains' images that may be refused; None = none is.
            batch_size: images in one pass; more = more memory, faster on a GPU.

        Raises:
            UserError: an image that cannot be read, or a domain that was not learned.
        """
        return self.answer_and_embed(images, candidates, task, top_k, abstain, batch_size)[0]

    def answer_and_embed(
        self,
        images: Sequence[Picture] | np.ndarray,
        candidates: Sequence[Asked] | None = None,
        task: str | None = None,
        top_k: int = 5,
        abstain: float | None = None,
        batch_size: int = PASS,
    ) -> tuple[list[Answer], np.ndarray]:
        """What `answer` and `embed` say, from one pass over the images."""
        if task is not None and task not in self.state.records:
            known = ", ".join(self.state.records) or "none"
            raise UserError(f"task={task}: is not learned; learned are: {known}")
        asked = None if candidates is None else tuple(_candidate(item) for item in candidates)
        wish = Wish(asked, task, top_k)
        found: list[Answer] = []
        features: list[np.ndarray] = []
        for part in self._passes(images, batch_size):
            answers, _ = self.runtime.answer(
                self.state, self.texts, part, [wish] * len(part), abstain=abstain, features=features
            )
            found += answers
        return found, _stacked(features)

    def embed(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
        """Normalised image features (B, F) of frozen CLIP."""
        return _stacked([self.runtime.embed(part) for part in self._passes(images)])

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

    def _passes(
        self, images: Sequence[Picture] | np.ndarray, count: int = PASS
    ) -> Iterator[np.ndarray]:
        """One at a time: decoded images of any number do not lie in memory together."""
        size = self.runtime.backbone.image_size
        return (pixels(images[i : i + count], size) for i in range(0, len(images), count))


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _candidate(item: Asked) -> Candidate:
    if isinstance(item, Candidate):
        return item
    return Candidate(item) if isinstance(item, str) else Candidate(item[1], item[0])

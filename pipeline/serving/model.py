"""The served model of one process: the generation that answers, and the one that is being prepared.

model = ServedModel("/data/runs/first", settings)
generation, answers, milliseconds = model.classify(images, [Ask()] * len(images))
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from archipelago.pipeline.config import stored_settings
from archipelago.pipeline.errors import IntegrityError, Refused, UserError
from archipelago.pipeline.identifiers import Evidence
from archipelago.pipeline.learned import Answer, Ask
from archipelago.pipeline.learned.consult import ConsultRequest
from archipelago.pipeline.learned.runtime import Runtime, Wish
from archipelago.pipeline.learned.state import State
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.records import GroupRecord, TaskRecord
from archipelago.pipeline.serving.canary import check
from archipelago.pipeline.serving.pointer import NOTHING, Pointer, read_pointer
from archipelago.pipeline.settings import ServingSettings, Settings
from archipelago.pipeline.store import GroupRef, RunFolder


@dataclass(frozen=True, eq=False)
class Generation:
    """What answers: an immutable value, swapped as a whole.

    Attributes:
        pointer: its number and its manifest.
        state: what was learned.
        texts: class features by name.
    """

    pointer: Pointer
    state: State
    texts: Texts

    @property
    def tasks(self) -> Mapping[str, TaskRecord]:
        """Learned domains, in the order of learning."""
        return self.state.records

    def group(self, task: str) -> GroupRecord:
        """The stage that learned a domain."""
        return next(g for g in self.state.groups if task in (t.name for t in g.tasks))


class ServedModel:
    """Frozen CLIP, all groups of the current generation, and a way to the next one.

    `prepare` and `activate` may run beside `classify`, from another thread.

    Args:
        run_dir: the run folder; its `run.json` says what the model is.
        serving: limits and the canary.
        device: `auto`, `cpu` or `cuda`.
        follow: load the current generation at once.

    Raises:
        UserError: not a run, a method that is not served, or another backbone than the run's.
        Refused: the current generation cannot be loaded.
    """

    def __init__(
        self,
        run_dir: str,
        serving: ServingSettings,
        device: str = "auto",
        follow: bool = True,
    ) -> None:
        self.run = RunFolder.open(run_dir)
        self.serving = serving
        self.settings = run_settings(self.run.read())
        self.runtime = Runtime(self.run, device)
        self._mutex = threading.Lock()
        self._prepared: Generation | None = None
        self._current = self._build(NOTHING)
        if follow:
            self.follow()

    @property
    def backbone(self) -> Backbone:
        """Frozen CLIP."""
        return self.runtime.backbone

    @property
    def current(self) -> Generation:
        """The generation that answers."""
        return self._current

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """The run's attention kernel, for all threads of this process while it lasts."""
        with self.runtime.exact():
            yield

    # -- generations -------------------------------------------------------------------------

    def follow(self) -> Pointer:
        """Answer from the generation that `serving.json` names, until it names no newer one.

        Raises:
            Refused: it cannot be loaded, or fails the canary.
        """
        while (pointer := read_pointer(self.run)).generation > self._current.pointer.generation:
            if self._prepared is None or self._prepared.pointer != pointer:
                self.prepare(pointer)
            self.activate(pointer)
        return self._current.pointer

    def prepare(self, pointer: Pointer) -> dict[str, float]:
        """Load a generation beside the current one and put it to the canary.

        Returns:
            Largest change of a log-probability per domain.

        Raises:
            Refused: why it must not answer; nothing has changed.
        """
        with self._mutex, self.exact():
            self._prepared = None
            generation = self._build(pointer)
            changes = check(self.runtime, generation, self._current, self.serving.canary)
            self._prepared = generation
            both = [*self._current.state.groups, *generation.state.groups]
            self.runtime.library.keep([group.ref for group in both if group.ref is not None])
            return changes

    def activate(self, pointer: Pointer) -> Pointer:
        """Answer from the prepared generation from now on; returns the one that answers.

        Anything but exactly what was prepared is left to `follow`.
        """
        with self._mutex:
            prepared = self._prepared
            if prepared is not None and prepared.pointer == pointer:
                if pointer.generation > self._current.pointer.generation:
                    self._current = prepared
                self._prepared = None
        return self._current.pointer

    def _build(self, pointer: Pointer) -> Generation:
        refs: tuple[GroupRef, ...] = ()
        try:
            if pointer.manifest:
                manifest = self.run.models.read(pointer.manifest)
                if manifest.sha256 != pointer.sha256:
                    raise Refused(f"manifest {pointer.manifest} is not the one that was published")
                refs = manifest.groups
            groups = self.runtime.library.all(refs)
            for group in groups:
                check_served(group, self.backbone)
            state = self.runtime.state(refs)
            if state.identifier is not None:  # solve it now, off the request path
                nothing = np.zeros((1, self.runtime.basis.width), np.float32)
                state.identifier.alone.identify(Evidence(nothing))
            return Generation(pointer, state, self.runtime.texts(state))
        except FileNotFoundError:
            raise Refused(f"there is no manifest {pointer.manifest}") from None
        except IntegrityError as error:
            raise Refused(" ".join(str(error).split())) from None
        except (ValueError, LookupError, TypeError) as error:  # a group that does not fit the rest
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise Refused(f"manifest {pointer.manifest} cannot be put together ({said})") from error

    def generation(self, manifest: int) -> Generation:
        """A manifest as it would answer, which here it does not.

        Raises:
            Refused: it cannot be loaded.
        """
        return self._build(Pointer(0, manifest, self.run.models.read(manifest).sha256))

    # -- requests ----------------------------------------------------------------------------

    def classify(
        self,
        images_BSSC: np.ndarray,
        asks: Sequence[Ask],
        unsure: list[ConsultRequest] | None = None,
    ) -> tuple[int, list[Answer], dict[str, float]]:
        """Generation, answers, and milliseconds of each part; for one thread at a time.

        Args:
            images_BSSC: uint8, of the backbone's size.
            asks: what is wanted for each image.
            unsure: takes the images on whose domain a second opinion is worth having.

        Raises:
            KeyError: a domain that the current generation has not learned.
        """
        now = self._current
        for name in (name for ask in asks for name in ask.names):
            if name not in now.tasks:
                raise KeyError(name)
        with self.exact():
            answers, spent = self.runtime.answer(
                now.state,
                now.texts,
                images_BSSC,
                [Wish.of(ask) for ask in asks],
                unsure,
                self.serving.abstain,
            )
        return now.pointer.generation, answers, spent

    def embed(
        self, images_BSSC: np.ndarray, texts: Sequence[str]
    ) -> tuple[int, np.ndarray, np.ndarray, dict[str, float]]:
        """Generation, features of images (B, F) and texts (N, F), and milliseconds of each part;
        for one thread at a time. They are frozen CLIP's: the same in every generation.

        Args:
            images_BSSC: uint8, of the backbone's size; may be none.
            texts: as they are written; may be none.
        """
        now, clock = self._current, time.perf_counter()
        nothing = np.zeros((0, 0), np.float32)
        with self.exact():
            images_BF = self.runtime.embed(images_BSSC) if len(images_BSSC) else nothing
            seen = time.perf_counter()
            texts_NF = now.texts.embed(texts)
        spent = {"images": seen - clock, "texts": time.perf_counter() - seen}
        milliseconds = {part: 1000.0 * seconds for part, seconds in spent.items()}
        return now.pointer.generation, images_BF, texts_NF, milliseconds


def check_served(group: GroupRecord, backbone: Backbone) -> None:
    """Whether a stage may be served with this backbone.

    Raises:
        Refused: it was learned for dense tasks, or belongs to another backbone.
    """
    dense = [task.name for task in group.tasks if task.kind is not None]
    if dense:
        raise Refused(
            f"group '{group.name}' was learned for dense tasks ({', '.join(dense)}): they are"
            " measured, and only domains with classes are served"
        )
    side = backbone.image_size
    for task in group.tasks:
        assert task.probe is not None
        if task.probe.images.shape[1:] != (side, side, 3):
            raise Refused(
                f"group '{group.name}': probe images {task.probe.images.shape} do not fit a"
                f" backbone of {side} pixels"
            )


def run_settings(document: dict[str, Any]) -> Settings:
    """The settings a run was learned with.

    Raises:
        UserError: its method cannot be served.
    """
    settings = stored_settings(document)
    method = method_class(settings.method.name)
    if not method.identifies():
        raise UserError(
            f"method.name={settings.method.name}: is not served, since it does not tell domains"
            " apart; learn the stream with method=trge"
        )
    return settings


def single_thread(threads: int) -> None:
    """Threads of torch for this process; 0 leaves all cores."""
    if threads:
        torch.set_num_threads(threads)

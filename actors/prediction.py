"""A prediction while it works: what is asked of which model, the output's lock, Ray, progress."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import ray

from archipelago.actors.arguments import absolute
from archipelago.actors.cluster import connect
from archipelago.actors.logs import show_logs
from archipelago.actors.predictors import Spec, answer_units, predict_cluster, threads
from archipelago.actors.preflight import check_resources
from archipelago.actors.stopping import Signals
from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.pace import Pace, in_words
from archipelago.pipeline.prediction.answers import Question, check_question
from archipelago.pipeline.prediction.listing import Listing, list_images
from archipelago.pipeline.prediction.output import COMPLETE, Output, check_same
from archipelago.pipeline.prediction.units import unit_rows
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.streams import decode
from archipelago.pipeline.streams.files import combine
from archipelago.pipeline.streams.walk import some

log = logging.getLogger("archipelago")

SETTINGS = ("cluster=", "cluster.", "stream.max_pixels=")  # that mean something here
ANSWERING = ("method", "identifier", "experts")  # sections that answers depend on


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        run_dir: the run, a path or a URI.
        input: the images, a path or a URI.
        output: where the answers go, a path or a URI.
        question: what is asked of each image.
        manifest: which version of the model; None = the newest.
        batch_size: images in one pass.
    """

    run_dir: str
    input: str
    output: str
    question: Question
    manifest: int | None = None
    batch_size: int = 64


class Prediction:
    """Use as a context manager: at the end the lock is released and the workers are gone.

    Args:
        request: what is wanted.
        words: settings.

    Raises:
        UserError: a word that means nothing here, or a relative place in a submitted job.
    """

    def __init__(self, request: Request, words: Sequence[str]) -> None:
        self.settings = _settings(words)
        self.request = request
        self.run_dir = absolute("run_dir", request.run_dir)
        self.input = absolute("input", request.input)
        self.output = Output(Folder(absolute("output", request.output)))
        self._signals = Signals()
        self._stack = contextlib.ExitStack()

    # -- begin -------------------------------------------------------------------------------

    def __enter__(self) -> Prediction:
        """Check, lock, list, and find what is done already."""
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        show_logs()
        run = RunFolder.open(self.run_dir)
        _check_apart(Folder(self.input), self.output.folder)
        state = self.output.state()
        model = _model(run, self._manifest(run, state))
        self.made = {"model": model, "words": self._words(), "run": run.folder.shown()}
        if state is not None:
            check_same(self.output.folder.shown(), state["made"], self.made)
        refs = run.models.read(model["manifest"]).groups if model["manifest"] else ()
        check_question(run, refs, self.request.question)
        size = int(run.read()["backbone"]["image_size"])
        self._stack.enter_context(self._signals.listening())
        self._stack.enter_context(self.output.lock())
        self.listing = _listed(self.input, unit_rows(size))
        self.done, stale = self.output.keep(self.listing.names)
        if stale:
            log.info("%d files of answers are of images that have changed or are gone", stale)
        if state is None or state["status"] != COMPLETE or len(self.done) < self._units:
            self.output.begin(self.made)
        self._spec = Spec(
            run.uri,
            model["manifest"],
            self.request.question,
            self.output.folder.uri,
            size,
            self.settings.stream.max_pixels,
            self.request.batch_size,
            self.settings.cluster.device,
            threads(self.settings),
        )

    @property
    def _units(self) -> int:
        return len(self.listing.names)

    def _words(self) -> dict[str, Any]:
        """What answers depend on beside the model; `batch_size` and the cluster change none."""
        question = asdict(self.request.question)
        candidates = question["candidates"]
        question["candidates"] = None if candidates is None else list(candidates)
        given = Folder(self.input).shown()
        return {"input": given, **question, "max_pixels": self.settings.stream.max_pixels}

    def _manifest(self, run: RunFolder, state: Mapping[str, Any] | None) -> int:
        """The version that is asked for; while an output is not complete, the one it began with."""
        versions, asked = run.models.versions(), self.request.manifest
        newest = versions[-1] if versions else 0
        if asked is None and state is not None and state["status"] != COMPLETE:
            asked = state["made"]["model"]["manifest"]
            if asked != newest:
                log.warning("goes on with manifest=%d; the newest is %d", asked, newest)
        chosen = newest if asked is None else asked
        if chosen not in (0, *versions):
            known = ", ".join(map(str, versions)) or "none"
            raise UserError(f"manifest={chosen}: the run has {known}")
        return chosen

    # -- while it runs -----------------------------------------------------------------------

    def answer(self) -> None:
        """Answer what is not answered yet.

        Raises:
            UserError: the cluster is too small, or nodes do not see the same folders.
        """
        names = self.listing.names
        wanted = names.keys() - self.done
        before = sum(names[name] for name in self.done)
        self.fresh = self.listing.count - before
        if wanted:
            again = f", {before:,} of them answered before" if before else ""
            log.info("%s images%s", f"{self.listing.count:,}", again)
            cluster = self._connect()
            self.pace = Pace("answers", self.listing.count, done=before)
            for written in answer_units(self.listing.parts, wanted, self._spec, cluster):
                self.pace.step(*written)
        missing = names.keys() - self.output.done()
        if missing:
            raise UserError(
                f"output={self.output.folder.shown()}: {len(missing)} files that other nodes wrote"
                " are not there; it must be a folder that every node sees"
            )
        self.output.finish(self.made, self.listing.count)

    def _connect(self) -> Any:
        cluster = predict_cluster(self.settings)
        if cluster.encode.num_workers:
            if connect(self.settings.model_copy(update={"cluster": cluster})):
                self._stack.callback(ray.shutdown)
                self._signals.listen()  # Ray has put its own handler there
            check_resources(cluster)
        return cluster

    def tell(self) -> None:
        """What happened, in a line."""
        said = f"{self.listing.count:,} images are answered in {self.output.folder.shown()}"
        if self.fresh:
            said += f", {self.fresh:,} of them now in {in_words(self.pace.seconds)}"
            if self.pace.errors:
                said += f"; {self.pace.errors:,} of these cannot be read, see column error"
        log.info("%s", said)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of everything.

        Raises:
            Stopped: a signal came, whatever Ray made of the exception.
        """
        self._stack.close()
        self._signals.insist(error)


def _settings(words: Sequence[str]) -> Settings:
    for word in words:
        if not word.startswith(SETTINGS):
            raise UserError(
                f"{word.partition('=')[0]}: unknown here; there are the words of --help,"
                " cluster=..., cluster.* and stream.max_pixels"
            )
    return load(words)


def _check_apart(images: Folder, answers: Folder) -> None:
    """Raises UserError where answers would be read as input."""
    for one, other in ((images, answers), (answers, images)):
        if f"{one.shown()}/".startswith(f"{other.shown()}/"):
            raise UserError(
                f"output={answers.shown()}: and input={images.shown()} lie in one another; give a"
                " folder beside it"
            )


def _model(run: RunFolder, manifest: int) -> dict[str, Any]:
    """What tells one model from another."""
    document = run.read()
    backbone, config = document["backbone"], document["config"]
    return {
        "manifest": manifest,
        "manifest_sha256": run.models.read(manifest).sha256 if manifest else None,
        "backbone_sha256": backbone["sha256"],
        "basis_sha256": backbone.get("basis"),
        "settings_sha256": combine({key: config.get(key) for key in ANSWERING}),
        "decoding": decode.VERSION,
    }


def _listed(uri: str, rows: int) -> Listing:
    found = list_images(uri, rows)
    if found.ignored_count:
        log.info(
            "left out, as neither images nor parquet files: %s (%s in all)",
            some(found.ignored),
            f"{found.ignored_count:,}",
        )
    return found

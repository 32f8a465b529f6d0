"""A run on disk: what it is (run.json), has done (journal) and has learned (groups)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.store import documents, resume
from archipelago.pipeline.store.folder import Folder
from archipelago.pipeline.store.groups import GroupRef, GroupStore
from archipelago.pipeline.store.journal import Journal
from archipelago.pipeline.store.lease import lock_of
from archipelago.pipeline.store.lock import Guard, Holder
from archipelago.pipeline.store.manifests import Manifests
from archipelago.pipeline.store.names import TASK

log = logging.getLogger(__name__)

SCHEMA = 2
RUN_FILE = "run.json"
REFERENCES = "references"
# Events that say what a stage's group is from then on; the last one counts.
COMPLETING = ("stage-done", "refined", "remixed", "forgotten", "dropped")


class RunFolder:
    """A run at `uri` (absolute path or URI). Creating the object touches nothing.

    Attributes: `folder` (all files), `journal`, `groups`, `models` (manifests), `uri`.
    Writers work inside `lock()`. With `read_only=True` journal, groups and models refuse writes;
    that is for reports, tracking and serving, which need no lock.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        filesystem: pafs.FileSystem | None = None,
        read_only: bool = False,
    ):
        self._attach(Folder(uri, filesystem), Guard(read_only))

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> RunFolder:
        """An existing run at a path or a URI, for reading. Raises: UserError when there is none."""
        where = os.fspath(uri)
        if "://" not in where:
            where = str(Path(where).expanduser().absolute())
        run = cls(where, read_only=True)
        run.read()
        return run

    def _attach(self, folder: Folder, guard: Guard) -> None:
        self.folder = folder
        self.uri = folder.uri
        self._guard = guard
        self.journal = Journal(folder.child("journal"), guard)
        self.groups = GroupStore(folder.child("groups"), guard)
        self.models = Manifests(folder.child("models"), guard)

    @contextlib.contextmanager
    def lock(
        self,
        *,
        wait_s: float = 0.0,
        ttl_s: float = 60.0,
        settle_s: float = 1.0,
        on_lost: Callable[[], None] | None = None,
    ) -> Iterator[Holder]:
        """Be the one writer of this run; yields this process as the holder.

        Locally the lock dies with its process; elsewhere it is a lease of `ttl_s` seconds. When a
        lease is lost, `on_lost` is called from another thread and every later write raises.
        Raises: LockedError naming the holder's `host:pid`, after waiting `wait_s` seconds.
        """
        held = lock_of(self.folder, ttl_s=ttl_s, settle_s=settle_s, on_lost=on_lost)
        held.acquire(wait_s)
        outer, self._guard.lock = self._guard.lock, held
        try:
            self._sweep()
            yield held.holder
        finally:
            self._guard.lock = outer
            held.release()

    def exists(self) -> bool:
        """Whether run.json is there."""
        return self.folder.exists(RUN_FILE)

    def read(self) -> dict[str, Any]:
        """run.json. Raises: UserError when there is none or this version cannot read it."""
        shown = self.folder.shown(RUN_FILE)
        try:
            document = self.folder.read_json(RUN_FILE)
        except FileNotFoundError:
            raise UserError(f"{shown} does not exist: this is not a run folder") from None
        except ValueError:
            raise UserError(f"{shown} is not JSON: restore it or use another run_dir") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else None
            raise UserError(
                f"{shown} has schema {found!r}, this version writes {SCHEMA}: learn the stream anew"
                " in another run_dir"
            )
        wrong = _misshapen(document)
        if wrong:
            raise UserError(
                f"{shown}: '{wrong}' is missing or of another kind: restore the file or use another"
                " run_dir"
            )
        return document

    def open_run(self, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Create run.json, or verify it and append to it; returns it as it now is.

        `settings`: the resolved, redacted config. `facts`: `backbone` and `stream` (`tasks` in
        order), optionally `kernels`, `versions`, `tracking`. A run that exists keeps its kernels.
        Raises: UserError, in one line, when the run may not be continued with these settings.
        """
        new = documents.plain(
            {
                "schema": SCHEMA,
                "config": settings,
                "seed": settings["seed"],
                "backbone": facts["backbone"],
                "stream": facts["stream"],
                "kernels": facts.get("kernels", {}),
                "versions": facts.get("versions", {}),
                "tracking": facts.get("tracking", {}),
            }
        )
        stored = self.read() if self.exists() else None
        document = new if stored is None else resume.merge(stored, new)
        if document != stored:
            self._guard()
            self.folder.write_json(RUN_FILE, document)
        return document

    def record_tracking(self, **facts: Any) -> dict[str, Any]:
        """Add tracking facts (such as the MLflow run id) to run.json; returns it."""
        document = self.read()
        document["tracking"] = {**document["tracking"], **documents.plain(facts)}
        self._guard()
        self.folder.write_json(RUN_FILE, document)
        return document

    def current_groups(self) -> list[GroupRef]:
        """The group of each stage as it now stands, by stage: what was refined or mixed anew since
        is not among them, nor what was forgotten. Bytes are not checked."""
        hashes = {
            event["stage"]: event.get("sha256")  # none for what was forgotten or dropped
            for event in self.journal.events()
            if event["event"] in COMPLETING and "stage" in event
        }
        return [ref for ref in self.groups.list() if hashes.get(ref.stage) == ref.sha256]

    def completed_stages(self) -> dict[int, GroupRef]:
        """Stages that need not be learned again, in order; not only a prefix.

        A stage is done when its committed group verifies, its latest `stage-done` event has the
        same sha256, and the neighbours named in its task.json are done too.
        """
        done: dict[int, GroupRef] = {}
        learned: set[str] = set()
        for ref in self.current_groups():
            try:
                self.groups.verify(ref)
                card = self._card(ref)
                missing = {neighbour["task"] for neighbour in card["neighbours"]} - learned
            except (IntegrityError, ValueError, KeyError, TypeError) as error:
                log.warning("stage %d is learned again: %s", ref.stage, error)
                continue
            if missing:
                names = ", ".join(sorted(missing))
                log.warning("stage %d is learned again: it borrows from %s", ref.stage, names)
                continue
            done[ref.stage] = ref
            learned |= {task["name"] for task in card["tasks"]}
        return done

    def forgotten(self) -> set[str]:
        """Tasks that were learned and are not to be learned again."""
        gone: set[str] = set()
        for event in self.journal.events():
            if event["event"] == "forgotten":
                tasks = {task for task in event.get("tasks") or [event.get("task")] if task}
                gone = gone - tasks if event.get("again") else gone | tasks
        return gone

    def erased(self, refs: Iterable[GroupRef]) -> list[str]:
        """Names of those groups whose files were removed when their domain was forgotten."""
        stored = {(ref.stage, ref.sha256) for ref in self.groups.list()}
        events = [e for e in self.journal.events() if e["event"] == "forgotten"]
        stages = {event["stage"] for event in events if event.get("erased")}
        stages |= {ref.stage for ref in self.current_groups()}  # superseded by a later record
        return [
            ref.name
            for ref in refs
            if (ref.stage, ref.sha256) not in stored and ref.stage in stages
        ]

    def reference(self, method: str) -> RunFolder:
        """Another method's sub-run, `references/<method>`; this run's lock guards it."""
        run = RunFolder.__new__(RunFolder)
        run._attach(self.folder.child(REFERENCES).child(method), self._guard)
        return run

    def drop_reference(self, method: str) -> None:
        """Remove a sub-run and all it holds; a missing one is fine."""
        self.folder.delete_tree(f"{REFERENCES}/{method}")

    def references(self) -> dict[str, RunFolder]:
        """Sub-runs that have begun, by method, alphabetical."""
        names = [name.rpartition("/")[2] for name in self.folder.list(f"{REFERENCES}/")]
        runs = {name: self.reference(name) for name in names}
        return {name: run for name, run in runs.items() if run.exists()}

    def _card(self, ref: GroupRef) -> dict[str, Any]:
        return dict(documents.loads(self.groups.read(ref, TASK)))

    def _sweep(self) -> None:
        folders = [self.folder, self.folder.child("journal"), self.folder.child("models")]
        folders += [self.folder.child(name) for name in self.folder.list("groups/")]
        for folder in folders:
            folder.sweep()


def _misshapen(document: Mapping[str, Any]) -> str | None:
    """The first key of run.json that is not what `open_run` writes."""
    kinds = {"config": dict, "seed": int, "backbone": dict, "stream": dict, "kernels": dict}
    for key, kind in {**kinds, "versions": dict, "tracking": dict}.items():
        if type(document.get(key)) is not kind:
            return key
    tasks = document["stream"].get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        return "stream.tasks"
    return None

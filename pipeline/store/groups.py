"""Expert groups on disk: a folder per stage that exists once its COMMIT does."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import documents
from archipelago.pipeline.store.folder import Folder, sha256
from archipelago.pipeline.store.lock import Check, unguarded
from archipelago.pipeline.store.names import GROUP as GROUP_FILE

log = logging.getLogger(__name__)

COMMIT = "COMMIT"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_FOLDER = re.compile(r"(\d{3,})-([^+]+)(?:\+\d+)?")  # quoted names hold no plus


@dataclass(frozen=True)
class GroupRef:
    """A committed group: stage (from 0), task name, folder name, sha256 of its COMMIT, which holds
    those of all its files."""

    stage: int
    name: str
    folder: str
    sha256: str


Refs = list[GroupRef]


class GroupStore:
    """The groups of one run in `folder`, for example `003-dtd/`.

    COMMIT maps each file to its sha256 and is written last: without it the folder does not exist.
    """

    def __init__(self, folder: Folder, guard: Check = unguarded):
        self._folder = folder
        self._guard = guard

    def write(
        self,
        stage: int,
        name: str,
        files: Mapping[str, bytes],
        *,
        replace: bool = False,
        beside: bool = False,
    ) -> GroupRef:
        """Store and commit a group. Writing the same bytes again changes nothing.

        What a killed writer left, or what no longer matches its hashes, is replaced. An intact
        group with other content is only replaced on `replace=True`, and left where it is, next to
        the new one (`003-dtd+2`), on `beside=True`.
        Raises: ValueError for file names the store cannot hold or a missing `group.safetensors`;
        IntegrityError for an intact group with other content.
        """
        if GROUP_FILE not in files:
            raise ValueError(f"group {name!r}: {GROUP_FILE} is missing")
        if wrong := [file for file in files if not _NAME.fullmatch(file) or file == COMMIT]:
            raise ValueError(f"group {name!r}: {wrong[0]!r} is not a name for a group's file")
        where = f"{stage:03d}-{quote(name, safe=' ')}"
        hashes = {file: sha256(data) for file, data in files.items()}
        digest = sha256(documents.dumps(hashes))
        ref = GroupRef(stage, name, where, digest)
        self._guard()
        stored = self._commit(where)
        if beside:
            first, count = where, 1
            while stored is not None and stored != hashes:
                count += 1
                where = f"{first}+{count}"
                stored = self._commit(where)
            ref = GroupRef(stage, name, where, digest)
        if stored is not None and self._intact(where, stored):
            if stored == hashes:
                return ref
            if not replace:
                shown = self._folder.shown(where)
                raise IntegrityError(f"{shown} is committed with other content")
        self._remove(where)
        target = self._folder.child(where)
        for file, data in sorted(files.items()):
            target.write(file, data)
        self._guard()
        target.write(COMMIT, documents.dumps(hashes))
        return ref

    def list(self) -> Refs:
        """Committed groups by stage; their bytes are checked by `read` and `verify`, not here."""
        refs = []
        for where in self._folder.list():
            match = _FOLDER.fullmatch(where)
            commit = self._commit(where) if match else None
            if match and commit is not None:
                digest = sha256(documents.dumps(commit))
                ref = GroupRef(int(match[1]), unquote(match[2]), where, digest)
                refs.append(ref)
        return sorted(refs, key=lambda ref: (ref.stage, ref.name))

    def files(self, ref: GroupRef) -> dict[str, str]:
        """sha256 of each file of a group. Raises: IntegrityError when it is not what `ref` says."""
        commit = self._commit(ref.folder)
        if commit is None:
            raise IntegrityError(f"{self._folder.shown(ref.folder)} is missing or not committed")
        if sha256(documents.dumps(commit)) != ref.sha256:
            shown = self._folder.shown(ref.folder)
            raise IntegrityError(f"{shown} is committed as another group than the one asked for")
        return commit

    def read(self, ref: GroupRef, file: str) -> bytes:
        """Bytes of one file, verified. Raises: IntegrityError naming the file."""
        return self._read(ref.folder, file, self.files(ref))

    def verify(self, ref: GroupRef) -> None:
        """Check every file of a group. Raises: IntegrityError naming the first bad one."""
        commit = self.files(ref)
        for file in sorted(commit):
            self._read(ref.folder, file, commit)

    def delete(self, ref: GroupRef) -> None:
        """Take a group away: first its COMMIT, so that no half of it is ever seen."""
        self._guard()
        self._remove(ref.folder)

    def _remove(self, where: str) -> None:
        self._folder.delete(f"{where}/{COMMIT}")
        self._folder.delete_tree(where)

    def _read(self, where: str, file: str, commit: Mapping[str, str]) -> bytes:
        shown = self._folder.shown(f"{where}/{file}")
        if file not in commit:
            raise IntegrityError(f"{shown} is not part of the committed group")
        try:
            data = self._folder.read(f"{where}/{file}")
        except FileNotFoundError:
            raise IntegrityError(f"{shown} is missing") from None
        if sha256(data) != commit[file]:
            raise IntegrityError(f"{shown} does not match its recorded sha256")
        return data

    def _intact(self, where: str, commit: Mapping[str, str]) -> bool:
        try:
            for file in commit:
                self._read(where, file, commit)
        except IntegrityError as error:
            log.warning("%s; the group is written again", error)
            return False
        return True

    def _commit(self, where: str) -> dict[str, str] | None:
        try:
            commit = self._folder.read_json(f"{where}/{COMMIT}")
        except FileNotFoundError:
            return None
        except ValueError:
            commit = None
        sound = isinstance(commit, dict) and all(isinstance(v, str) for v in commit.values())
        if not sound or GROUP_FILE not in commit:
            log.warning("%s is damaged; its group counts as missing", self._folder.shown(where))
            return None
        return commit

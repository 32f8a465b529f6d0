"""Model versions: each manifest is an ordered list of groups by hash, chained to the one before."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import documents
from archipelago.pipeline.store.folder import Folder, sha256
from archipelago.pipeline.store.groups import GroupRef
from archipelago.pipeline.store.lock import Check, unguarded

_FILE = re.compile(r"(\d{3,})\.json")


@dataclass(frozen=True)
class Manifest:
    """One model version. `parent` and `sha256` are hashes of manifest files."""

    version: int
    groups: tuple[GroupRef, ...]
    parent: str | None
    sha256: str


class Manifests:
    """The manifests of one run in `folder`: `001.json`, `002.json`, ..., never changed."""

    def __init__(self, folder: Folder, guard: Check = unguarded):
        self._folder = folder
        self._guard = guard
        self._mutex = threading.Lock()

    def publish(self, refs: Iterable[GroupRef], *, again: bool = False) -> int:
        """Version of the model made of `refs` (put in order of stage).

        A list that was published before keeps its version. With `again=True` only the latest
        manifest counts as "before", so that a model can return to an older list as the newest one.
        """
        groups = tuple(sorted(refs, key=lambda ref: ref.stage))
        if len({ref.stage for ref in groups}) != len(groups):
            raise ValueError("a manifest holds one group a stage")
        with self._mutex, self._folder.exclusive():
            self._guard()
            versions = self.versions()
            for version in reversed(versions[-1:] if again else versions):
                if self.read(version).groups == groups:
                    return version
            previous = self.read(versions[-1]) if versions else None
            version = previous.version + 1 if previous else 1
            document = {
                "version": version,
                "groups": [_entry(ref) for ref in groups],
                "parent": previous.sha256 if previous else None,
            }
            self._folder.write_json(_name(version), document)
        return version

    def versions(self) -> list[int]:
        """Published versions, ascending."""
        matches = (_FILE.fullmatch(name) for name in self._folder.list())
        return sorted(int(match[1]) for match in matches if match)

    def read(self, version: int) -> Manifest:
        """A manifest, checked against the hashes its neighbours in the chain hold.

        Raises: FileNotFoundError; IntegrityError naming the file that was altered.
        """
        data = self._folder.read(_name(version))
        manifest = self._parse(version, data)
        if version > 1:
            self._link(version - 1, manifest.parent)
        elif manifest.parent is not None:
            raise IntegrityError(f"{self._shown(version)} is the first and cannot have a parent")
        if self._folder.exists(_name(version + 1)):
            child = self._parse(version + 1, self._folder.read(_name(version + 1)))
            if child.parent != manifest.sha256:
                raise IntegrityError(f"{self._shown(version)} or the next manifest was altered")
        return manifest

    def latest(self) -> Manifest | None:
        """The newest manifest, or None before the first stage is done."""
        versions = self.versions()
        return self.read(versions[-1]) if versions else None

    def _link(self, version: int, expected: str | None) -> None:
        try:
            actual = sha256(self._folder.read(_name(version)))
        except FileNotFoundError:
            raise IntegrityError(f"{self._shown(version)} is missing from the chain") from None
        if actual != expected:
            raise IntegrityError(f"{self._shown(version)} or the next manifest was altered")

    def _parse(self, version: int, data: bytes) -> Manifest:
        try:
            document = documents.loads(data)
            groups = tuple(_ref(entry) for entry in document["groups"])
            manifest = Manifest(document["version"], groups, document["parent"], sha256(data))
            if not isinstance(manifest.parent, str | None):
                raise TypeError("parent")
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(f"{self._shown(version)} is not a manifest") from None
        if manifest.version != version:
            raise IntegrityError(f"{self._shown(version)} says it is version {manifest.version}")
        return manifest

    def _shown(self, version: int) -> str:
        return self._folder.shown(_name(version))


def _name(version: int) -> str:
    return f"{version:03d}.json"


def _entry(ref: GroupRef) -> dict[str, int | str]:
    return {"stage": ref.stage, "task": ref.name, "folder": ref.folder, "sha256": ref.sha256}


def _ref(entry: dict) -> GroupRef:
    texts = entry["task"], entry["folder"], entry["sha256"]
    if type(entry["stage"]) is not int or not all(isinstance(text, str) for text in texts):
        raise TypeError("a group")
    return GroupRef(entry["stage"], *texts)

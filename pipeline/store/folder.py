"""One place for files, local or in an object store, in which a file is either whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs as pafs

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.store import documents

Names = list[str]


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


class Folder:
    """A folder behind `pyarrow.fs`.

    Local files are written beside their place, fsynced and renamed; anywhere else an object is put
    whole. Nothing is created before the first write. Names may hold `/`, never `..`; names that
    start with a dot are the store's own (temporary files) and are never listed.

    `uri` is an absolute path or a URI that pyarrow knows (`file:`, `s3:`, `gs:`, `abfs:`, ...).
    With `filesystem`, `uri` is the path inside that file system.
    Raises: UserError for a relative path or an unknown scheme.
    """

    def __init__(self, uri: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None):
        text = os.fspath(uri)
        system, path = _open(text) if filesystem is None else (filesystem, text)
        while isinstance(system, pafs.SubTreeFileSystem):
            system, path = system.base_fs, f"{system.base_path.rstrip('/')}/{path.lstrip('/')}"
        self._fs = system
        self._path = path.rstrip("/")
        self.local: Path | None = Path(path) if isinstance(system, pafs.LocalFileSystem) else None
        self.uri: str = str(self.local) if self.local else text.rstrip("/")

    def __repr__(self) -> str:
        return f"Folder({self.shown()!r})"

    def shown(self, name: str = "") -> str:
        """Where `name` lies, for messages: without credentials or query."""
        parts = urlsplit(self.uri)
        netloc = parts.netloc.rpartition("@")[2]
        place = self.uri if self.local else urlunsplit((parts.scheme, netloc, parts.path, "", ""))
        return f"{place}/{name}" if name else place

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        folder = Folder(self._at(name), self._fs)
        if not self.local:
            parts = urlsplit(self.uri)
            folder.uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        return folder

    @property
    def place(self) -> tuple[pafs.FileSystem, str]:
        """The file system it lies on, and its path there."""
        return self._fs, self._path

    def read(self, name: str) -> bytes:
        """Bytes of a file. Raises: FileNotFoundError."""
        with self._fs.open_input_stream(self._at(name), compression=None) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; whoever reads sees the old bytes or all of the new ones."""
        path = self._at(name)
        if self.local:
            _write_local(Path(path), data)
            return
        try:
            stream = self._fs.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a remote file system that has real folders
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self._fs.open_output_stream(path, compression=None)
        with stream:
            stream.write(data)

    def exists(self, name: str) -> bool:
        """Whether a file or folder `name` is there."""
        return self._fs.get_file_info(self._at(name)).type != pafs.FileType.NotFound

    def modified(self, name: str) -> float | None:
        """When a file was written, by the store's own clock; None where it tells no time."""
        at = self._fs.get_file_info(self._at(name)).mtime_ns
        return None if at is None else at / 1e9

    def list(self, prefix: str = "") -> Names:
        """Names that start with `prefix`, files and folders, sorted; one level deep.

        `list("groups/0")` looks into `groups` and answers `groups/000-aid`, `groups/001-dtd`, ...
        """
        head, slash, tail = prefix.rpartition("/")
        where = pafs.FileSelector(self._at(head) if head else self._path, allow_not_found=True)
        names = {info.base_name for info in self._fs.get_file_info(where)}
        return sorted(
            head + slash + name
            for name in names
            if name and name.startswith(tail) and not name.startswith(".")
        )

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is fine."""
        path = self._at(name)
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(path)
            if self.local:
                _sync(Path(path).parent)

    def delete_tree(self, name: str) -> None:
        """Remove a folder and all it holds; a missing one is fine."""
        path = self._at(name)
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                shutil.rmtree(path)
                _sync(Path(path).parent)
            else:
                self._fs.delete_dir(path)

    def read_json(self, name: str) -> Any:
        """A JSON document. Raises: FileNotFoundError; ValueError where it is not JSON."""
        return documents.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> bytes:
        """Write `value` as sorted JSON; the bytes written are returned, for hashing."""
        data = documents.dumps(value)
        self.write(name, data)
        return data

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold off other writers of this folder for a moment; not in object stores."""
        if not self.local:
            yield
            return
        make_folder(self.local)
        with (self.local / ".lock").open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def sweep(self, older_s: float = 3600.0) -> None:
        """Remove temporary files that killed writers left here more than `older_s` seconds ago."""
        for path in self.local.glob(".*.tmp") if self.local else ():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_s:
                    path.unlink()

    def _at(self, name: str) -> str:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{name!r} is not a name inside a folder")
        return f"{self._path}/{name}"


def _open(uri: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in uri:
        if not Path(uri).is_absolute():
            raise UserError(f"{uri!r} is relative: use an absolute path or a URI all nodes see")
        return pafs.LocalFileSystem(), os.path.normpath(uri)
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, ValueError) as error:
        scheme = uri.partition("://")[0]
        reason = f"cannot open a {scheme}:// address ({' '.join(str(error).split())})"
        raise UserError(f"{reason}; use an absolute path, s3:// or gs://") from None


def _write_local(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each made durable in the one above."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

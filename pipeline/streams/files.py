"""Files of a stream's root, which may be a local folder or any URI that pyarrow.fs understands.

Names are text; where a local name is no UTF-8, its bytes are kept as lone surrogates (as `os` does)
and `shown` writes them as \\xe9. Bytes are read as they lie: nothing is decompressed by its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pyarrow import ArrowException, fs

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.junk import is_junk_file, is_junk_folder

BLOCK = 1 << 20  # bytes read at a time when hashing


class Entry(NamedTuple):
    """A name directly inside a folder.

    Attributes:
        folder: whether it is one; links count as what they point to.
        fault: why it is neither a folder nor a file that could be read; empty = it is one.
        size: of a file, in bytes.
        link: whether a folder is reached through a symbolic link.
        modified: when it was written last, in nanoseconds; 0 where the file system tells no time.
    """

    name: str
    folder: bool
    fault: str = ""
    size: int = 0
    link: bool = False
    modified: int = 0

    @property
    def junk(self) -> bool:
        """Whether it belongs to a system or a tool and is never data."""
        return is_junk_folder(self.name) if self.folder else is_junk_file(self.name)


@dataclass(frozen=True)
class Root:
    """A folder on a file system; picklable, so that tasks on any node can read it."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str | None, key: str = "stream.root") -> Root:
        """Open an existing folder; raises UserError naming `key`."""
        if not uri:
            raise UserError(f"{key}: missing; set it to the folder that holds the domains")
        try:
            if "://" in uri:
                filesystem, path = fs.FileSystem.from_uri(uri)
            else:
                filesystem, path = fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
            root = cls(filesystem, path.rstrip("/") or "/")
            there = root.is_folder("")
        except (OSError, ArrowException, RuntimeError, ValueError) as error:
            raise UserError(f"{key}: cannot open {shown(uri)}: {one_line(error)}") from None
        if not there:
            raise UserError(f"{key}: {shown(uri)} is not a folder")
        return root

    @property
    def local(self) -> bool:
        """Whether the files lie on this machine, or look so."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def at(self, name: str) -> str:
        """The path of `name` (empty = the folder itself) on its file system."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def shown(self, name: str = "") -> str:
        """The same for messages."""
        return shown(self.at(name))

    def child(self, name: str) -> Root:
        """The folder `name` inside this one, whether it exists or not."""
        return Root(self.filesystem, self.at(name))

    def entries(self, name: str = "") -> list[Entry]:
        """All that lies directly inside the folder `name`, sorted; nothing where it is absent.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            found = self._scan(name) if self.local else self._list(name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be listed: {one_line(error)}") from None
        return sorted(found)

    def folders(self) -> list[str]:
        """Names of the visible folders directly inside, sorted."""
        return [entry.name for entry in self.entries() if entry.folder and _visible(entry)]

    def files(self) -> list[str]:
        """Names of the visible files directly inside, sorted; none where the folder is absent."""
        found = [entry for entry in self.entries() if not entry.folder and not entry.fault]
        return [entry.name for entry in found if _visible(entry)]

    def exists(self, name: str) -> bool:
        """Whether a file or folder `name` is inside."""
        if self.local:
            return Path(self.at(name)).exists()
        return self.filesystem.get_file_info(self.at(name)).type != fs.FileType.NotFound

    def is_folder(self, name: str) -> bool:
        """Whether a folder `name` is inside."""
        if self.local:
            return Path(self.at(name)).is_dir()
        return self.filesystem.get_file_info(self.at(name)).type == fs.FileType.Directory

    def read(self, name: str) -> bytes:
        """All bytes of one file."""
        with self._stream(name) as stream:
            return stream.read()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object from a file; raises UserError naming the file."""
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.shown(name)}: not valid JSON: {one_line(error)}") from None
        except OSError as error:
            raise UserError(f"{self.shown(name)}: cannot be read: {one_line(error)}") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.shown(name)}: must hold one JSON object")
        return value

    def sha256(self, names: list[str]) -> list[str]:
        """Content hashes of several files, read side by side."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._sha256, names))

    def try_sha256(self, names: list[str]) -> list[str | OSError]:
        """The same; in the place of a file that cannot be read stands why."""

        def attempt(name: str) -> str | OSError:
            try:
                return self._sha256(name)
            except OSError as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(attempt, names))

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._stream(name) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        if self.local:
            return Path(self.at(name)).open("rb")
        return self.filesystem.open_input_stream(self.at(name), compression=None)

    def _scan(self, name: str) -> list[Entry]:
        with os.scandir(self.at(name)) as found:
            return [_entry(item) for item in found]

    def _list(self, name: str) -> list[Entry]:
        found = self.filesystem.get_file_info(fs.FileSelector(self.at(name), allow_not_found=True))
        kinds = {fs.FileType.Directory: "", fs.FileType.File: ""}
        return [
            Entry(
                info.base_name,
                info.type == fs.FileType.Directory,
                kinds.get(info.type, "no regular file"),
                info.size or 0,
                modified=info.mtime_ns or 0,
            )
            for info in found
            if info.base_name
        ]


def combine(*parts: object) -> str:
    """sha256 hex over JSON-able parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, short enough for a message."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return " ".join(shown(text).split())[:200] or type(error).__name__


def shown(name: str) -> str:
    """A name as text that can be printed and stored: bytes that are no UTF-8 as \\xe9."""
    data = name.encode("utf-8", "surrogatepass" if not _from_bytes(name) else "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def is_text(name: str) -> bool:
    """Whether a name, or any other text, is valid Unicode."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_bytes(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _visible(entry: Entry) -> bool:
    return not entry.name.startswith((".", "_")) and not entry.junk


def _entry(item: os.DirEntry[str]) -> Entry:
    try:
        about = item.stat()
    except FileNotFoundError:
        return Entry(item.name, False, "a link to a file that is not there")
    except OSError as error:
        return Entry(item.name, False, f"cannot be read: {one_line(error)}")
    if stat.S_ISDIR(about.st_mode):
        return Entry(item.name, True, link=item.is_symlink())
    fault = "" if stat.S_ISREG(about.st_mode) else "no regular file"
    return Entry(item.name, False, fault, about.st_size, modified=about.st_mtime_ns)

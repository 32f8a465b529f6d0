"""Decoded images in an object store, of which each node copies what it reads.

Nodes without a common file system share them this way: whoever decodes a shard puts it there, and
`local_copy` brings a split to the node that opens it, once for all its processes. Copies are named
by content, so that runs share them; the least recently used ones make room.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pyarrow import ArrowException, fs

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams.entries import Entries
from archipelago.pipeline.streams.files import one_line, shown
from archipelago.pipeline.streams.marker import COMPLETE, marker_of
from archipelago.pipeline.streams.selection import SUFFIX, Selection, file_name

NODE_CACHE = "ARCHIPELAGO_NODE_CACHE"  # folder of this node's copies; by default a temporary one
NODE_CACHE_GIB = "ARCHIPELAGO_NODE_CACHE_GIB"  # their budget, which a run sets
BUDGET_GIB = 20.0


def is_remote(path: str) -> bool:
    """Whether it is the address of an object store rather than a path of this node."""
    return "://" in path


def node_folder() -> Path:
    """Where this node keeps its copies."""
    return Path(os.environ.get(NODE_CACHE) or Path(tempfile.gettempdir()) / "archipelago-cache")


def below(uri: str, name: str) -> str:
    """The address of `name` inside the folder `uri`, whose query stays."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def above(uri: str) -> tuple[str, str]:
    """The folder that holds what lies at `uri`, and its name there."""
    parts = urlsplit(uri)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    return urlunsplit(parts._replace(path=folder)), unquote(name)


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        system, path = fs.FileSystem.from_uri(uri)
        system.get_file_info(path)
    except (OSError, ArrowException, ImportError, ValueError) as error:
        raise UserError(
            f"cluster.cache_dir: cannot open {shown(uri)} ({one_line(error)}); give a path that"
            " every node sees, s3:// or gs://"
        ) from None
    return system, path.rstrip("/")


@dataclass
class RemoteStaging:
    """An entry in preparation: its shards lie in their place, where nothing reads them yet."""

    folder: str

    def drop(self) -> None:
        """Shards without a marker count for nothing; a later attempt writes the same ones."""


class RemoteEntries:
    """`<cache_dir>/images` in an object store, in the shape of `Entries`."""

    def __init__(self, cache_dir: str) -> None:
        self.uri = below(cache_dir, "images")
        self._fs, self._path = _open(self.uri)

    def path(self, key: str) -> str:
        """Where the entry lies, or would lie."""
        return below(self.uri, key)

    def find(self, key: str) -> dict[str, Any] | None:
        """The marker of a complete entry, or None."""
        return marker_of(
            lambda: self.read(f"{key}/{COMPLETE}"), lambda file: self._size(f"{key}/{file}")
        )

    def begin(self, key: str) -> RemoteStaging:
        """Start an entry; its shards go below the returned address."""
        return RemoteStaging(self.path(key))

    def commit(self, key: str, staging: RemoteStaging, marker: dict[str, Any]) -> None:
        """Make the entry exist; another run's identical entry is as good as ours."""
        self.write(f"{key}/{COMPLETE}", json.dumps(marker).encode())
        if self.find(key) is None:
            raise UserError(
                f"cluster.cache_dir: shards are missing in {shown(staging.folder)}; they were"
                " removed while the stream was decoded, run again"
            )

    def select(self, key: str, selection: Selection) -> str:
        """Keep a selection beside the shards of its table; returns its address."""
        name = f"{key}/{file_name(selection.digest)}"
        if self._fs.get_file_info(f"{self._path}/{name}").type == fs.FileType.NotFound:
            self.write(name, selection.content)
        return below(self.path(key), file_name(selection.digest))

    def make_room(self, incoming: int, budget: int, keep: set[str]) -> None:
        """An object store has no budget; nodes keep to theirs when they copy."""

    def free(self) -> int | None:
        """Unknown."""
        return None

    def read(self, name: str) -> bytes:
        """A file of an entry. Raises: OSError."""
        with self._fs.open_input_stream(f"{self._path}/{name}", compression=None) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | Path) -> None:
        """Put a file of an entry there, from memory or from this node's disk. Raises: OSError."""
        path = f"{self._path}/{name}"
        try:
            stream = self._fs.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a remote file system that has real folders
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self._fs.open_output_stream(path, compression=None)
        with stream:
            if isinstance(data, bytes):
                stream.write(data)
            else:
                with data.open("rb") as file:
                    shutil.copyfileobj(file, stream, 1 << 22)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of an entry onto this node. Raises: OSError."""
        with (
            self._fs.open_input_stream(f"{self._path}/{name}", compression=None) as stream,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, 1 << 22)
            file.flush()
            os.fsync(file.fileno())

    def _size(self, name: str) -> int:
        info = self._fs.get_file_info(f"{self._path}/{name}")
        if info.type != fs.FileType.File:
            raise FileNotFoundError(name)
        return int(info.size)


def entries_of(cache_dir: str) -> Entries | RemoteEntries:
    """The cache at a path that every node sees, or in an object store."""
    return RemoteEntries(cache_dir) if is_remote(cache_dir) else Entries(cache_dir)


def local_copy(path: str) -> Path:
    """A table or a selection on this node: itself, or a copy of what lies in an object store.

    Raises:
        UserError: it is not there.
    """
    if not is_remote(path):
        return Path(path)
    folder, name = above(path)
    chosen = name if name.endswith(SUFFIX) else None
    images, key = above(folder) if chosen else (folder, name)
    source = RemoteEntries(above(images)[0])
    here = Entries(str(node_folder()))
    target = here.path(key)
    try:
        if here.find(key) is None:
            _copy(source, here, key)
        if chosen is not None and not (target / chosen).exists():
            data = source.read(f"{key}/{chosen}")
            temporary = target / f".{os.getpid()}-{chosen}"
            temporary.write_bytes(data)
            temporary.replace(target / chosen)
    except OSError as error:
        raise UserError(
            f"{shown(path)}: cannot be copied to {target} ({one_line(error)}); run again to"
            " prepare it"
        ) from None
    return target if chosen is None else target / chosen


def _copy(source: RemoteEntries, here: Entries, key: str) -> None:
    """Bring an entry to this node, one process at a time."""
    with (here.folder / f".{key}.fetching").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if here.find(key) is not None:
            return
        marker = source.find(key)
        if marker is None:
            raise FileNotFoundError(f"no complete image cache of {key}")
        budget = float(os.environ.get(NODE_CACHE_GIB) or BUDGET_GIB)
        need = sum(shard["bytes"] for shard in marker["shards"])
        here.make_room(need, int(budget * 2**30), keep={key})
        staging = here.begin(key)
        try:
            for shard in marker["shards"]:
                source.fetch(f"{key}/{shard['file']}", staging.folder / shard["file"])
            here.commit(key, staging, marker)
        finally:
            staging.drop()


@contextlib.contextmanager
def shard_folder(folder: str) -> Iterator[Path]:
    """Where the shards of an entry are written on this node before they are put into the store.

    Notes of a decoder that died stay there for its successor.
    """
    key = above(folder)[1]
    scratch = node_folder() / "decoding" / key
    scratch.mkdir(parents=True, exist_ok=True)
    yield scratch
    with contextlib.suppress(OSError):  # another task writes there, too
        scratch.rmdir()


def put_shard(folder: str, file: Path) -> None:
    """Put a written shard in its place in the store; this node's file goes."""
    entry, key = above(folder)
    RemoteEntries(above(entry)[0]).write(f"{key}/{file.name}", file)
    file.unlink()


def drop_copies(digest: str) -> list[str]:
    """Remove this node's copies of a split, and of selections with that digest.

    Args:
        digest: of the split's content, or of a selection.
    """
    folder, gone = node_folder() / "images", []
    for entry in folder.glob("*") if folder.is_dir() else ():
        if entry.name.startswith(digest[:32]) or (entry / file_name(digest)).exists():
            shutil.rmtree(entry, ignore_errors=True)
            gone.append(entry.name)
    return gone

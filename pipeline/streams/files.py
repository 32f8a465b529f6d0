"""Files of a stream's root, which may be a local folder or any URI that pyarrow.fs understands."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from pipeline.errors import UserError

BLOCK = 1 << 20  # bytes read at a time when hashing


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
            kind = filesystem.get_file_info(path).type
        except (OSError, ArrowException) as error:
            raise UserError(f"{key}: cannot open {uri}: {one_line(error)}") from None
        if kind != fs.FileType.Directory:
            raise UserError(f"{key}: {uri} is not a folder")
        return cls(filesystem, path.rstrip("/"))

    def child(self, name: str) -> Root:
        """The folder `name` inside this one, whether it exists or not."""
        return Root(self.filesystem, f"{self.path}/{name}")

    def folders(self) -> list[str]:
        """Names of the visible folders directly inside, sorted."""
        return self._names(fs.FileType.Directory)

    def files(self) -> list[str]:
        """Names of the visible files directly inside, sorted; none where the folder is absent."""
        return self._names(fs.FileType.File)

    def exists(self, name: str) -> bool:
        """Whether a file or folder `name` is inside."""
        return self.filesystem.get_file_info(f"{self.path}/{name}").type != fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """All bytes of one file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object from a file; raises UserError naming the file."""
        try:
            value = json.loads(self.read(name))
        except ValueError as error:
            raise UserError(f"{self.path}/{name}: not valid JSON: {one_line(error)}") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.path}/{name}: must hold one JSON object")
        return value

    def sha256(self, names: list[str]) -> list[str]:
        """Content hashes of several files, read side by side."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._sha256, names))

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _names(self, kind: fs.FileType) -> list[str]:
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(
            info.base_name
            for info in found
            if info.type == kind and not info.base_name.startswith((".", "_"))
        )


def combine(*parts: object) -> str:
    """sha256 hex over JSON-able parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, short enough for a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__

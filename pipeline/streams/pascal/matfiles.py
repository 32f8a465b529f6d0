"""MATLAB's .mat files (version 5 to 7), held to a size before they are unpacked.

A file is a header of 128 bytes and elements: a tag of (type, bytes) and that many bytes, each
padded to eight. An element may be compressed, and a matrix states its own dimensions.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

from archipelago.pipeline.streams.files import one_line

HEADER, TAG = 128, 8
DIMENSIONS, MATRIX, COMPRESSED = 5, 14, 15  # types of elements
CONTAINERS = (1, 2, 3)  # classes of matrices that hold others: cell, struct, object
DEEPEST = 16  # matrices inside matrices; PASCAL-Part has four


class BadMat(Exception):
    """Not a .mat file that is read; the message says why."""


def load(data: bytes, limit: int) -> dict[str, Any]:
    """The variables of a file that unpacks to at most `limit` bytes. Raises: BadMat."""
    from scipy.io import loadmat  # only who reads this layout pays for it

    _check(data, limit)
    try:
        found = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise BadMat(
            "a MATLAB 7.3 (HDF5) file; write it again with save(file, '-struct', 's', '-v7')"
        ) from None
    except Exception as error:  # the parser raises nearly everything on damaged files
        raise BadMat(f"not a readable .mat file: {one_line(error)}") from None
    return dict(found)


def _check(data: bytes, limit: int) -> None:
    """Refuse what would unpack to more, or states more matrices than it has bytes for."""
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None or 0 in data[:4]:
        return  # version 4 is as large as its file; the parser says what else it is
    left = limit
    for kind, body in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            try:
                body = memoryview(zlib.decompressobj().decompress(body, left + 1))
            except zlib.error as error:
                raise BadMat(f"not a readable .mat file: {one_line(error)}") from None
        left -= len(body)
        if left < 0:
            raise BadMat(f"unpacks to more than {limit} bytes (stream.max_pixels)")
        if kind == COMPRESSED:
            for inner, content in _elements(body, order):
                _check_matrix(inner, content, order, DEEPEST)
        else:
            _check_matrix(kind, body, order, DEEPEST)


def _check_matrix(kind: int, body: memoryview, order: str, depth: int) -> None:
    if kind != MATRIX:
        return
    if not depth:
        raise BadMat("nested too deeply")
    container = len(body) > TAG and struct.unpack_from(f"{order}I", body, TAG)[0] % 256
    for inner, content in _elements(body, order):
        if inner == DIMENSIONS and container in CONTAINERS:
            sides = struct.unpack_from(f"{order}{len(content) // 4}i", content)
            if math.prod(sides) > len(body) // TAG:
                raise BadMat("states more cells than it holds")
        _check_matrix(inner, content, order, depth - 1)


def _elements(data: memoryview, order: str) -> Any:
    """(type, bytes) of each; a cut one is as long as it is. Short ones, of four bytes at most, are
    names and numbers of no account."""
    at = 0
    while at + TAG <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        at += TAG
        if kind >> 16:
            continue
        yield kind, data[at : at + size]
        at += size if kind == COMPRESSED else -(-size // TAG) * TAG

"""Class lists: names with the sentences in which the text encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TEMPLATES = ("a photo of a {}.",)  # of names that come without any


class Prompted(NamedTuple):
    """A class name and its templates, each with one `{}`."""

    name: str
    templates: tuple[str, ...] = TEMPLATES


ClassList = tuple[Prompted, ...]


def class_list(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> ClassList:
    """Names that share their templates."""
    shared = tuple(templates)
    return tuple(Prompted(name, shared) for name in names)

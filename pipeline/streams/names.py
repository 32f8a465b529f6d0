"""Names of classes as text: the same name is the same, however its letters are composed."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): Macs decompose file names, others do not."""
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """What two spellings of a name have in common: neither case nor blanks nor underscores."""
    return " ".join(composed(name).casefold().replace("_", " ").replace("-", " ").split())

"""Who is this image: identifiers behind one interface, each one file registering itself by name."""

from pipeline.identifiers.base import (
    Evidence,
    Identification,
    Identifier,
    build_identifier,
    identifiers,
)
from pipeline.identifiers.description import Description, Sample
from pipeline.identifiers.looker import Looker, Shown

__all__ = [
    "Description",
    "Evidence",
    "Identification",
    "Identifier",
    "Looker",
    "Sample",
    "Shown",
    "build_identifier",
    "identifiers",
]

"""Who is this image: identifiers behind one interface, each one file registering itself by name."""

from pipeline.identifiers.base import (
    Evidence,
    Identification,
    Identifier,
    Study,
    build_identifier,
    identifier_class,
    identifiers,
)
from pipeline.identifiers.description import Description, Sample
from pipeline.identifiers.looker import Looker, Shown
from pipeline.identifiers.signature import Signature

__all__ = [
    "Description",
    "Evidence",
    "Identification",
    "Identifier",
    "Looker",
    "Sample",
    "Shown",
    "Signature",
    "Study",
    "build_identifier",
    "identifier_class",
    "identifiers",
]

"""Who is this image: identifiers behind one interface, each one file registering itself by name."""

from pipeline.identifiers.base import (
    Evidence,
    Identification,
    Identifier,
    build_identifier,
    identifiers,
)
from pipeline.identifiers.signature import Signature

__all__ = [
    "Evidence",
    "Identification",
    "Identifier",
    "Signature",
    "build_identifier",
    "identifiers",
]

"""Who is this image: identifiers behind one interface, each one file registering itself by name."""

from archipelago.pipeline.identifiers.base import (
    Evidence,
    Identification,
    Identifier,
    build_identifier,
    identifiers,
)
from archipelago.pipeline.identifiers.description import Description, Sample
from archipelago.pipeline.identifiers.score_cache import ImageSource, ScoreCache

__all__ = [
    "Description",
    "Evidence",
    "Identification",
    "Identifier",
    "ImageSource",
    "Sample",
    "ScoreCache",
    "build_identifier",
    "identifiers",
]

"""The protocols that `conf/stream` names: which sets they want, and what of them is not there."""

from __future__ import annotations

import logging

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams import Domain
from archipelago.pipeline.streams.registry import readers

log = logging.getLogger("archipelago")

PRESETS = ("mtil", "mtil-ii", "mtil-5shot", "xtail", "cil-cifar100")
# Classes of each set, and the sentence that reads its class names.
SETS = {
    "aircraft": (100, "a photo of a {}, a type of aircraft."),
    "caltech101": (101, "a photo of a {}."),
    "cifar100": (100, "a photo of a {}."),
    "dtd": (47, "a photo of a {} texture."),
    "eurosat": (10, "a centered satellite photo of {}."),
    "flowers": (102, "a photo of a {}, a type of flower."),
    "food": (101, "a photo of a {}, a type of food."),
    "mnist": (10, 'a photo of the number: "{}".'),
    "oxfordpet": (37, "a photo of a {}, a type of pet."),
    "stanfordcars": (196, "a photo of a {}, a type of car."),
    "sun397": (397, "a photo of a {}."),
}


def check_sets(preset: str, settings: StreamSettings, seed: int) -> None:
    """Name every set that a protocol wants and that is not there.

    Args:
        preset: the file of `conf/stream` that was chosen.
        settings: of the stream.
        seed: the run's.

    Raises:
        UserError: one line with all that is missing.
    """
    there = readers.get(settings.reader)(settings, seed).names()
    missing = [name for name in settings.order or () if name not in there]
    if missing:
        raise UserError(
            f"stream={preset}: {settings.root} lacks {', '.join(missing)}; each is a folder with"
            " domain.json, train*.parquet and test*.parquet"
        )


def deviations(domain: Domain) -> list[str]:
    """In what a set is not the protocol's, so that figures are not those of the literature."""
    if domain.name not in SETS:
        return []
    classes, template = SETS[domain.name]
    found = []
    if len(domain.classes) != classes:
        found.append(f"{len(domain.classes)} classes, not {classes}")
    if template not in domain.templates:
        found.append(f"no template {template!r}")
    return found


def name_deviations(preset: str, domains: list[Domain]) -> None:
    """Say so in a line for each set; classes of one set that come in steps are left out."""
    for domain in domains:
        found = deviations(domain)
        if found:
            log.warning("stream=%s: %s has %s", preset, domain.name, "; ".join(found))

"""Which classes have images once the bad ones are out, and whether there are enough to learn from.

A class without images stays an answer; that nobody has shown it is said by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from archipelago.pipeline.streams.cache import PreparedDomain
from archipelago.pipeline.streams.folds import check_held_out, stratified_fold
from archipelago.pipeline.streams.table import ImageTable

log = logging.getLogger(__name__)

MOST = 10  # names in one message


def check_coverage(
    domains: Sequence[PreparedDomain], held_out: float, seed: int, *, holds_out: bool
) -> None:
    """Name the classes that lack images; refuse what cannot be learned.

    Args:
        domains: as prepared.
        held_out: share of the training images that is kept for early stopping.
        seed: the run's.
        holds_out: whether the method needs such a share (one image a class leaves none).

    Raises:
        UserError: the method needs held-out images and there are none.
    """
    for domain in domains:
        if domain.kind is not None:
            continue
        tables = {split: ImageTable.open(path) for split, path in domain.tables.items()}
        labels = {split: table.labels for split, table in tables.items()}
        _name_lacking(domain, labels)
        if not holds_out:
            continue
        groups = tables["train"].groups
        rows, held = stratified_fold(labels["train"], held_out, seed, domain.name, groups)
        check_held_out(domain.name, rows, held, groups)


def _name_lacking(domain: PreparedDomain, labels: Mapping[str, np.ndarray]) -> None:
    counts = {
        split: np.bincount(found, minlength=len(domain.classes)) for split, found in labels.items()
    }
    unseen = np.flatnonzero(counts["train"] == 0)
    untested = np.flatnonzero((counts["test"] == 0) & (counts["train"] > 0))
    if len(unseen):
        tested = int(counts["test"][unseen].sum())
        also = f"; {tested} test images are of such classes" if tested else ""
        log.warning(
            "%s: no usable training image of %s%s: nothing is learned about %s",
            domain.name,
            _names(domain, unseen),
            also,
            "it" if len(unseen) == 1 else "them",
        )
    if len(untested):
        log.warning(
            "%s: no usable test image of %s: not measured", domain.name, _names(domain, untested)
        )


def _names(domain: PreparedDomain, numbers: np.ndarray) -> str:
    words = ", ".join(repr(domain.classes[i]) for i in numbers[:MOST])
    return words if len(numbers) <= MOST else f"{words}, ... ({len(numbers)} classes)"

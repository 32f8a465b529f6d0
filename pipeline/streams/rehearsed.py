"""A domain to rehearse on: some of its training images stand in for its test images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from archipelago.pipeline.streams.cache import PreparedDomain
from archipelago.pipeline.streams.folds import check_held_out, stratified_fold
from archipelago.pipeline.streams.remote import above, entries_of, local_copy
from archipelago.pipeline.streams.selection import SUFFIX, Selection
from archipelago.pipeline.streams.table import ImageTable


def rehearsed(domain: PreparedDomain, share: float, seed: int) -> PreparedDomain:
    """The domain with a share of its training images as its test split; the real one is not seen.

    What chooses settings may look at its accuracies. The selections lie beside the decoded images.

    Args:
        domain: decoded, with classes.
        share: of the training images of every class, in (0, 1).
        seed: draws them.

    Raises:
        UserError: one image a class at most.
    """
    path = domain.tables["train"]
    table = ImageTable.open(path)
    kept, held = stratified_fold(
        table.labels, share, seed, f"rehearsal/{domain.name}", table.groups
    )
    check_held_out(domain.name, kept, held, table.groups)
    base, classes = domain.digests["train"], tuple(range(len(domain.classes)))
    folder = path
    if path.endswith(SUFFIX):
        whole = Selection.read(local_copy(path))
        base, classes, folder = whole.base, whole.classes, above(path)[0]
    images, key = above(folder)
    entries = entries_of(above(images)[0])
    tables, digests, counts = {}, {}, {}
    for split, rows in (("train", kept), ("test", held)):
        groups = None if table.groups is None else tuple(table.groups[rows].tolist())
        part = Selection(base, tuple(np.sort(table.rows[rows]).tolist()), classes, groups)
        tables[split] = entries.select(key, part)
        digests[split], counts[split] = part.digest, len(rows)
    return replace(domain, tables=tables, digests=digests, counts=counts, quarantined=0)

"""Taking rows out again: sums without some of their rows.

Shapes: C classes, K compact width.
"""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.closedform.sums import Sums
from archipelago.pipeline.closedform.triangle import packed


def parted(whole: Sums, part: Sums) -> Sums:
    """The sums of the rows of `whole` that are not in `part`: the inverse of `Sums.merged`.

    Raises:
        ValueError: `part` has rows that `whole` does not have.
    """
    counts = whole.counts - part.counts
    if whole.means.shape != part.means.shape or (counts < 0).any():
        raise ValueError("sums can only be parted from sums that hold them")
    left = counts > 0
    share = np.where(left, 1.0 / np.maximum(counts, 1.0), 0.0)[:, None]
    means = share * (whole.counts[:, None] * whole.means - part.counts[:, None] * part.means)
    both = left & part.known
    apart = np.where(both[:, None], part.means - means, 0.0)
    weights = np.where(both, counts * part.counts / np.maximum(whole.counts, 1.0), 0.0)
    weighted = np.sqrt(weights)[:, None] * apart
    scatter = whole.scatter - part.scatter - packed(weighted.T @ weighted)
    return Sums(counts, np.where(left[:, None], means, 0.0), scatter)

"""Metric of edges: the F of a threshold that is one for the whole data set (ODS).

As in the boundary benchmarks: at each threshold the answer is thinned to lines one pixel wide, its
pixels and those of the (thinned) truth are matched one to one within a tolerance, and hits, answers
and targets are summed over all images. `P = hits / answers`, `R = hits / targets`,
`F = 2 P R / (P + R)`; ODS F is the maximum over thresholds.

Shapes: B images, S side in pixels, K thresholds.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from archipelago.pipeline.dense.base import Metric, Score
from archipelago.pipeline.streams.targets import IGNORE
from archipelago.pipeline.streams.thinning import thin

TOLERANCE = 0.0075  # of the image's diagonal
SMALLEST = math.sqrt(2.0)  # pixels: small images still allow a neighbour
THRESHOLDS = 20


class BoundaryF(Metric):
    """ODS F of edge maps.

    Args:
        tolerance: largest distance of a match, as a share of the image's diagonal.
        smallest: the same in pixels; the larger of both counts.
        thresholds: K, evenly spaced inside (0, 1).
    """

    def __init__(
        self,
        tolerance: float = TOLERANCE,
        smallest: float = SMALLEST,
        thresholds: int = THRESHOLDS,
    ) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.smallest = smallest
        self.thresholds = (np.arange(thresholds) + 0.5) / thresholds
        self.sums = {
            name: np.zeros(thresholds, np.int64) for name in ("hits", "answers", "targets")
        }

    def update(self, output_BOSS: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, 1, S, S) and edges (B, S, S); ignored pixels are no edge."""
        p_BSS = torch.sigmoid(output_BOSS[:, 0].float()).cpu().numpy()
        labels_BSS = targets.cpu().numpy()
        p_BSS = np.where(labels_BSS == IGNORE, 0.0, p_BSS)
        reach = max(self.tolerance * math.hypot(*p_BSS.shape[1:]), self.smallest)
        truth_BSS = thin(labels_BSS == 1)
        wanted = int(truth_BSS.sum())
        hits, answers = np.zeros_like(self.sums["hits"]), np.zeros_like(self.sums["hits"])
        for k, threshold in enumerate(self.thresholds):
            answer_BSS = thin(p_BSS > threshold)
            answers[k] = answer_BSS.sum()
            hits[k] = sum(map(matched, answer_BSS, truth_BSS, itertools.repeat(reach)))
        self.merge({"hits": hits, "answers": answers, "targets": np.full_like(hits, wanted)})

    def values(self) -> dict[str, Score]:
        """`odsF` in percent, and precision and recall at its threshold."""
        hits, answers, targets = (self.sums[n] for n in ("hits", "answers", "targets"))
        if not targets.any():
            return {n: Score(np.nan, "%", False) for n in ("odsF", "precision", "recall")}
        p, r = hits / np.maximum(answers, 1), hits / np.maximum(targets, 1)
        f = 2 * p * r / np.maximum(p + r, 1e-12)
        best = int(f.argmax())
        return {
            "odsF": Score(100.0 * float(f[best]), "%", False),
            "precision": Score(100.0 * float(p[best]), "%", False),
            "recall": Score(100.0 * float(r[best]), "%", False),
        }


def matched(answer_SS: np.ndarray, truth_SS: np.ndarray, reach: float) -> int:
    """How many pixels of two edge maps can be paired one to one, none farther than `reach`.

    The largest matching of the graph of all close pairs; the benchmark's cheapest assignment has
    the same size, since there an unmatched pixel costs more than any distance.
    """
    numbers = np.full(truth_SS.shape, -1)
    numbers[truth_SS] = np.arange(int(truth_SS.sum()))
    far = int(reach)
    padded = np.pad(numbers, far, constant_values=-1)
    ys, xs = np.nonzero(answer_SS)
    if not len(ys) or not truth_SS.any():
        return 0
    steps = np.arange(-far, far + 1)
    near = [(y, x) for y in steps for x in steps if y * y + x * x <= reach * reach]
    offsets = np.array(sorted(near, key=lambda step: step[0] ** 2 + step[1] ** 2))
    partners = padded[ys[:, None] + offsets[:, 0] + far, xs[:, None] + offsets[:, 1] + far]
    rows, places = np.nonzero(partners >= 0)
    graph = csr_array(
        (np.ones(len(rows), bool), (rows, partners[rows, places])),
        shape=(len(ys), int(truth_SS.sum())),
    )
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())

"""RAIL: one recursive ridge regression over all classes of all domains, fused with frozen CLIP.

Rule (arXiv 2406.18868, primal form): `phi(x) = relu(R' v)` of CLIP's image feature v with random
R, `W = (sum_n phi phi' + lambda I)^-1 sum_n phi y'` over the one-hot classes of everything
learned. An image whose likeliest candidate is a learned class by frozen CLIP is scored over the
learned classes, `beta softmax(exp(s) <v, u>) + (1 - beta) W' phi`; for any other frozen CLIP
answers. So nobody needs to know the domain, and nothing that was learned is disturbed.

Differences from the paper: each stage stores its own sums, from which W is solved, instead of one
running inverse, so that forgetting a domain gives the numbers of a model that never met it; the
default width is 5,000, the paper's is 15,000 (its Gram matrix takes 0.9 GB a stage); classes of
the same name and templates count as one; `lambda` is a share of the mean square of phi. Scores
become probabilities by shifting the least to zero and dividing by the sum, which keeps their
order.

Shapes: B images, C candidates, F embedding, W random features, K learned classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from archipelago.pipeline.closedform.triangle import packed, unpacked
from archipelago.pipeline.methods.base import (
    Fitted,
    Method,
    MethodOptions,
    StageData,
    log_softmax,
    register,
)
from archipelago.pipeline.methods.view import Function, View
from archipelago.pipeline.records import ClassList, GroupRecord, Prompted

CHUNK = 2048  # images whose random features are held at once
LEAST = 1e-6


class RailOptions(MethodOptions):
    """`width` of the projection, `ridge` strength, `clip`: share of frozen CLIP among learned."""

    width: int = Field(5000, ge=1)
    ridge: float = Field(0.01, gt=0.0)
    clip: float = Field(0.2, ge=0.0, le=1.0)


@register
class Rail(Method):
    """Recursive ridge regression on random features."""

    name = "rail"
    Options = RailOptions
    policy = "one"
    trains = False
    holds_out = False
    _groups: tuple[GroupRecord, ...] = ()
    _projection: np.ndarray | None = None

    def features(self, frozen_BF: np.ndarray) -> np.ndarray:
        """`relu(R' v)`, (B, W) in double precision; R follows from the seed."""
        shape = frozen_BF.shape[1], self.options.width
        if self._projection is None or self._projection.shape != shape:
            drawn = np.random.default_rng((self.settings.seed, *shape))
            self._projection = drawn.standard_normal(shape)
        return np.maximum(frozen_BF.astype(np.float64) @ self._projection, 0.0)

    def fit(self, stage: StageData, earlier: Sequence[GroupRecord]) -> Fitted:
        """Sums of the stage's training images: `sum phi phi'`, and `sum phi` of each class."""
        gram = np.zeros((self.options.width, self.options.width))
        tensors: dict[str, Tensor] = {}
        for record in stage.tasks:
            count = int(record.counts["train"])
            sums = np.zeros((len(record.classes), self.options.width))
            for start in range(0, count, CHUNK):
                rows = np.arange(start, min(start + CHUNK, count))
                _, frozen, labels = stage.look(record.name, rows)
                phi = self.features(frozen)
                gram += phi.T @ phi
                np.add.at(sums, labels, phi)
            tensors[f"{record.name}/classes"] = torch.from_numpy(sums)
        tensors["gram"] = torch.from_numpy(packed(gram))
        return Fitted(tensors, parameters=sum(t.numel() for t in tensors.values()))

    def install(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        """Sums answer in `scores`, not in the encoders; see `hold`.

        Raises:
            ValueError: they are not of this width.
        """
        width = self.options.width
        wrong = [k for k, t in tensors.items() if "/" in k and t.shape[-1] != width]
        if tensors and ("gram" not in tensors or wrong):
            raise ValueError(f"sums of '{task}' do not fit method.options.width={width}")

    def hold(self, groups: Sequence[GroupRecord]) -> None:
        """The sums of exactly these stages, in order of their names."""
        self._groups = tuple(sorted((g for g in groups if g.tensors), key=lambda g: g.name))
        for group in self._groups:
            self.install(group.name, group.tensors)
        self.__dict__.pop("_solved", None)

    @cached_property
    def _solved(self) -> tuple[dict[Prompted, int], np.ndarray]:
        """Column of each learned class, and the coefficients (W, K)."""
        gram = np.zeros((self.options.width, self.options.width))
        columns: dict[Prompted, int] = {}
        targets: list[np.ndarray] = []
        for group in self._groups:
            gram += unpacked(group.tensors["gram"].numpy())
            for record in group.tasks:
                sums = group.tensors[f"{record.name}/classes"].numpy()
                for item, row in zip(record.listed, sums, strict=True):
                    if item in columns:
                        targets[columns[item]] = targets[columns[item]] + row
                    else:
                        columns[item] = len(targets)
                        targets.append(row)
        level = max(float(np.trace(gram)) / len(gram), LEAST)
        gram[np.diag_indices_from(gram)] += self.options.ridge * level
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        return columns, cho_solve(factor, np.stack(targets, axis=1), check_finite=False)

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The regression, whatever the image."""
        return Function(learned[-1], None) if learned else None

    def scores(self, view: View, function: Function, listed: ClassList) -> np.ndarray:
        """Log-probabilities (B, C), see the module's text."""
        clip_BC = log_softmax(self.clip_scores(view, view.text(listed, None)))
        columns, weights = self._solved
        learned = np.array([i for i, item in enumerate(listed) if item in columns], np.int64)
        found = clip_BC
        rows = np.flatnonzero(np.isin(clip_BC.argmax(axis=1), learned))
        if not len(rows):
            return found
        phi = self.features(view.frozen[rows])
        ridge = phi @ weights[:, [columns[listed[i]] for i in learned]]
        frozen = np.exp(log_softmax(clip_BC[np.ix_(rows, learned)]))
        mixed = self.options.clip * frozen + (1.0 - self.options.clip) * ridge
        shifted = mixed - mixed.min(axis=1, keepdims=True) + LEAST
        found = clip_BC.copy()
        found[rows] = -np.inf
        found[np.ix_(rows, learned)] = np.log(shifted / shifted.sum(axis=1, keepdims=True))
        return found

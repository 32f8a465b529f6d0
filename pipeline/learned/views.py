"""A view of images that are in hand: functions run when they are asked for.

Shapes: B images, L tokens, D width, F embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from archipelago.pipeline.learned.passes import Passed
from archipelago.pipeline.learned.texts import Texts
from archipelago.pipeline.methods import Function, Method, View
from archipelago.pipeline.records import ClassList


class LiveView(View):
    """Images after one pass of frozen CLIP.

    Args:
        method: with its functions installed.
        passed: trunk activations and features.
        texts: class features by name.
        versions: hash of each task's weights, so that texts of replaced weights are not used.
    """

    def __init__(
        self, method: Method, passed: Passed, texts: Texts, versions: dict[str, str]
    ) -> None:
        self.compact, self.frozen = passed.compact, passed.frozen
        self._method, self._texts, self._versions = method, texts, versions
        self._x_BLD: Tensor = passed.x_BLD
        self._rows = np.arange(len(self.compact))
        self._known: dict[tuple[int, Function], np.ndarray] = {}

    @torch.no_grad()
    def prepare(self, pairs: Sequence[tuple[int, Function]]) -> None:
        """One pass of all functions that are wanted, whoever wants them."""
        wanted = list(
            dict.fromkeys(
                (int(self._rows[row]), function)
                for row, function in pairs
                if (int(self._rows[row]), function) not in self._known
            )
        )
        if not wanted:
            return
        at = [row for row, _ in wanted]
        # Rows in place need no copy: the usual batch, in which each image has one function.
        whole = at == list(range(len(self._x_BLD)))
        x_PLD = self._x_BLD if whole else self._x_BLD[torch.tensor(at)]
        with self._method.backbone.kernels.exact():
            v_PF = self._method.image_features(x_PLD, [function for _, function in wanted])
        self._known.update(zip(wanted, v_PF.cpu().numpy(), strict=True))

    def features(self, function: Function) -> np.ndarray:
        """Features (B, F) under a function; what is missing is computed."""
        self.prepare([(row, function) for row in range(len(self))])
        return np.stack([self._known[int(row), function] for row in self._rows])

    def text(self, listed: ClassList, function: Function | None) -> np.ndarray:
        """Class features (C, F)."""
        version = None
        if function is not None and function.weights is not None:
            version = self._versions.get(function.weights)
        return self._texts.get(listed, function, version)

    def take(self, rows: np.ndarray) -> LiveView:
        """Of some of the images; what is computed for them is shared."""
        part = LiveView.__new__(LiveView)
        part.__dict__.update(self.__dict__)
        part.compact, part.frozen = self.compact[rows], self.frozen[rows]
        part._rows = self._rows[rows]
        return part

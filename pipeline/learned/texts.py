"""Class features by name, encoded once: what an encoder or a replica keeps of open vocabularies.

Shapes: C classes, N texts, F embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from archipelago.pipeline.methods.view import Function
from archipelago.pipeline.records import ClassList, Prompted

if TYPE_CHECKING:
    from archipelago.pipeline.learned.state import State

KEPT = 20_000  # vectors: some tens of MB
AS_WRITTEN = ("{}",)  # the template of a text that is read as it is
PASS = 64  # texts in one pass of `embed`
Encode = Callable[[ClassList, Function | None], np.ndarray]


class Texts:
    """Class features under functions, the last few thousand kept.

    Args:
        encode: encodes what is not kept, (C, F).
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._kept: OrderedDict[Any, np.ndarray] = OrderedDict()

    def keep(
        self,
        listed: ClassList,
        function: Function | None,
        features_CF: np.ndarray,
        version: str | None = None,
    ) -> None:
        """Take in class features that are known already; arguments as for `get`."""
        keys = [(item, function, version) for item in listed]
        self._kept.update(zip(keys, features_CF, strict=True))

    def remember(self, state: State) -> None:
        """Take in what records hold; of two records with a name in common, the first by name.

        A task's own class features are those of the weights that its own stage left: where newer
        weights answer for it, its classes are read anew.
        """
        for name in sorted(state.records, reverse=True):
            record, function = state.records[name], state.function(name)
            if record.text_CF is not None:
                self.keep(record.listed, None, record.text_CF)
            own = function is not None and function.weights == name == function.task
            if record.own_CF is not None and function is not None and own:
                version = state.versions.get(name)
                self.keep(record.listed, function, record.own_CF, version)

    def get(
        self, listed: ClassList, function: Function | None, version: str | None = None
    ) -> np.ndarray:
        """Class features (C, F) of a list.

        Args:
            listed: names with their templates.
            function: under which; None = frozen CLIP.
            version: hash of the function's weights.
        """
        keys = [(item, function, version) for item in listed]
        missing = list(dict.fromkeys(key for key in keys if key not in self._kept))
        if missing:
            fresh = self._encode(tuple(item for item, _, _ in missing), function)
            self._kept.update(zip(missing, fresh, strict=True))
        for key in keys:
            self._kept.move_to_end(key)
        found = [self._kept[key] for key in keys]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, 1), np.float32)

    def embed(self, written: Sequence[str]) -> np.ndarray:
        """Normalised features (N, F) of frozen CLIP, of texts as they are written.

        What exceeds the text tower's context is cut. A text's features do not depend on the others
        beyond float32's rounding.
        """
        listed = tuple(Prompted(text, AS_WRITTEN) for text in written)
        parts = [self.get(listed[i : i + PASS], None) for i in range(0, len(listed), PASS)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

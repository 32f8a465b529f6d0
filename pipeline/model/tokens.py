"""The tokenizer of a backbone, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from archipelago.pipeline.model.backbone import EMBEDDED
from archipelago.pipeline.model.openclip import open_clip
from archipelago.pipeline.settings import BackboneSettings

Tokens = list[tuple[int, ...]]


def tokenizer_of(settings: BackboneSettings) -> Callable[[Sequence[str]], Tokens]:
    """Captions to what the text tower reads: ids, cut at its context length, padded with zeros."""
    name = settings.name
    tokenizer: Any = open_clip.get_tokenizer(
        f"local-dir:{EMBEDDED[name]}" if name in EMBEDDED else name
    )

    def tokens(texts: Sequence[str]) -> Tokens:
        return [tuple(row) for row in tokenizer(list(texts)).tolist()]

    return tokens

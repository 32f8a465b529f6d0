"""open_clip, imported without what only its other models need.

transformers and timm are optional to open_clip, but where they are installed it imports them at
once: a quarter of its import time, in every process that holds CLIP. No backbone that is supported
here uses them.
"""

from __future__ import annotations

import sys
from typing import Any

MOST_WORDS = 20_000  # that a tokenizer keeps
OPTIONAL = ("transformers", "timm")

_hidden = [name for name in OPTIONAL if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None: "not installed"
try:
    import open_clip
finally:
    for _name in _hidden:
        del sys.modules[_name]


def forget_words(tokenizer: Any) -> None:
    """Let go of the words that a tokenizer has met, where they are many: it keeps all of them, and
    an endpoint is shown new ones for ever."""
    words = getattr(tokenizer, "cache", None)
    if isinstance(words, dict) and len(words) > MOST_WORDS:
        tokenizer.cache = {word: parts for word, parts in words.items() if word == parts}  # special


__all__ = ["forget_words", "open_clip"]

"""open_clip, imported without what only its other models need.

transformers and timm are optional to open_clip, but where they are installed it imports them at
once: a quarter of its import time, in every process that holds CLIP. No backbone that is supported
here uses them. torchvision imports torch's compiler for one function of one of its operators; it is
imported when that is called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

MOST_WORDS = 20_000  # that a tokenizer keeps
OPTIONAL = ("transformers", "timm")
COMPILER = "torch._dynamo"


def _compiler() -> dict[str, ModuleType]:
    """Stand-ins for torch's compiler with what torchvision imports of it."""
    package, utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")

    def is_compile_supported(*arguments: Any) -> Any:
        return importlib.import_module(utils.__name__).is_compile_supported(*arguments)

    vars(utils)["is_compile_supported"] = is_compile_supported
    package.__path__ = []
    return {package.__name__: package, utils.__name__: utils}


_hidden: dict[str, Any] = dict.fromkeys(OPTIONAL)  # None: "not installed"
if COMPILER not in sys.modules:
    _hidden |= _compiler()
_hidden = {name: module for name, module in _hidden.items() if name not in sys.modules}
sys.modules.update(_hidden)
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

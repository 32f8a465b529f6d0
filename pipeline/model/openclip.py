"""open_clip, imported without what only its other models need.

transformers and timm are optional to open_clip, but where they are installed it imports them at
once: a quarter of its import time, in every process that holds CLIP. No backbone that is supported
here uses them.
"""

from __future__ import annotations

import sys

OPTIONAL = ("transformers", "timm")

_hidden = [name for name in OPTIONAL if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None: "not installed"
try:
    import open_clip
finally:
    for _name in _hidden:
        del sys.modules[_name]

__all__ = ["open_clip"]

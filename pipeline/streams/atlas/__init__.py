"""The embedded stream: six small domains, painted on demand and the same on every machine.

`SCENES` maps a domain's name to its `Scene`. Raise `VERSION` whenever a pixel changes: the digest
of every split is made of it, so caches and runs notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from archipelago.pipeline.streams.atlas import digits, flags, glyphs, shapes, terrain, textures
from archipelago.pipeline.streams.atlas.scene import Scene

VERSION = 1

SCENES: Mapping[str, Scene] = MappingProxyType(
    {m.SCENE.name: m.SCENE for m in (digits, flags, glyphs, shapes, terrain, textures)}
)

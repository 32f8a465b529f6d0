"""The run folder: hashed groups, manifests, journal and lock. Knows no model, loads no pickle.

`pipeline.store.tensors` is imported by name where tensors are needed, so that readers of a run
(report, tracking, serving) do not pay for it here.
"""

from __future__ import annotations

from archipelago.pipeline.store.folder import Folder, sha256
from archipelago.pipeline.store.groups import GroupRef, GroupStore
from archipelago.pipeline.store.journal import Journal
from archipelago.pipeline.store.lock import Holder
from archipelago.pipeline.store.manifests import Manifest, Manifests
from archipelago.pipeline.store.run import RunFolder

__all__ = [
    "Folder",
    "GroupRef",
    "GroupStore",
    "Holder",
    "Journal",
    "Manifest",
    "Manifests",
    "RunFolder",
    "sha256",
]

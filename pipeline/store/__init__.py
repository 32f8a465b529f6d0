"""The run folder: hashed groups, manifests, journal and lock. Knows no model, loads no pickle.

`pipeline.store.tensors` is imported by name where tensors are needed, so that readers of a run
(report, tracking, serving) do not pay for it here.
"""

from __future__ import annotations

from pipeline.store.folder import Folder, sha256
from pipeline.store.groups import GroupRef, GroupStore
from pipeline.store.journal import Journal
from pipeline.store.lock import Holder
from pipeline.store.manifests import Manifest, Manifests
from pipeline.store.run import RunFolder

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

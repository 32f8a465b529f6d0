"""The least that a run folder needs to answer: run.json, basis, one manifest and its groups.

No journal, no data, no earlier manifests: what was learned and is forgotten since is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import GroupRef, RunFolder, names
from archipelago.pipeline.store.run import RUN_FILE

Files = Mapping[str, bytes]


def write_minimal(
    target: RunFolder,
    document: Mapping[str, Any],
    basis: bytes,
    refs: Iterable[GroupRef],
    files: Callable[[GroupRef], Files],
) -> None:
    """Write a run folder with one manifest, from which `LearnedModel.open` answers.

    Args:
        target: where; empty.
        document: run.json.
        basis: bytes of its basis of compact features.
        refs: the groups.
        files: bytes of every file of a group.

    Raises:
        IntegrityError: a group's files are not those that its hash names.
    """
    target.folder.write_json(RUN_FILE, document)
    target.folder.write(names.BASIS, basis)
    written = []
    for ref in refs:
        copy = target.groups.write(ref.stage, ref.name, files(ref))
        if copy.sha256 != ref.sha256:
            raise IntegrityError(f"group '{ref.name}' holds other files than its hash names")
        written.append(copy)
    target.models.publish(written)

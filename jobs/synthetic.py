"""Synthetic groups for measurements: a run's groups again and again, under other names."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.store import GroupRef, RunFolder


def grow(run: RunFolder, sizes: Sequence[int]) -> dict[int, int]:
    """Store copies of the run's groups and publish manifests of so many; size -> version.

    A copy borrows from nobody, so that every group costs the same, and is recognised by its
    signature alone: the run is changed, use a copy of it.
    """
    document = run.read()
    document["config"]["identifier"]["name"] = "prototype"
    run.folder.write_json("run.json", document)
    real = [ref for ref in run.groups.list() if not _card(run, ref)["neighbours"]]
    refs: list[GroupRef] = []
    found = {}
    with run.lock():
        for size in sizes:
            while len(refs) < size:
                source, stage = real[len(refs) % len(real)], 1000 + len(refs)
                files = {file: run.groups.read(source, file) for file in run.groups.files(source)}
                card = {**_card(run, source), "name": f"synthetic-{len(refs):03d}", "stage": stage}
                identifier = card["calibration"]["identifier"]
                guard = identifier.get("guard", identifier)
                card["calibration"] = card["calibration"] | {"identifier": guard}
                files["task.json"] = json.dumps(card, sort_keys=True, indent=1).encode()
                refs.append(run.groups.write(stage, card["name"], files))
            found[size] = run.models.publish(refs)
    return found


def _card(run: RunFolder, ref: GroupRef) -> dict:
    return dict(json.loads(run.groups.read(ref, "task.json")))

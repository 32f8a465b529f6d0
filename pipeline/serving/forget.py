"""Forget a domain: a manifest without it, dependents mixed anew, and on request its erasure.

A group borrows from earlier ones with weights of its own. Where a dependent loses a neighbour, its
experts stay and the neighbour's share is dropped (`serving.dependents=remix`), or the group is left
out until `jobs/sequence.py` learns it again without that neighbour (`retrain`). Either way a
dependent's function changes, and what it scores on its stored images is measured before and after.
A group that nobody borrows from leaves all other functions as they are, to the bit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.methods.base import build_method
from pipeline.serving.canary import probe_logits
from pipeline.serving.library import (
    GROUP,
    IDENTITY,
    PROBE,
    TASK,
    LearnedTask,
    Library,
    task_cards,
)
from pipeline.serving.model import ServedModel
from pipeline.serving.pointer import NOTHING, Refused
from pipeline.serving.snapshot import Snapshot
from pipeline.settings import ServingSettings
from pipeline.store import Folder, GroupRef, RunFolder
from pipeline.store.tensors import dump, load

log = logging.getLogger(__name__)


@dataclass
class Forgetting:
    """What was decided and stored; nothing is gone before `finish`.

    Attributes:
        run: the run.
        task: the forgotten domain.
        stage: its stage.
        manifest: the model without it.
        before: the manifest of the model with it.
        dependents: `{"task", "rule", "before", "after"}` per group that borrowed from it; accuracy
            in percent of the images stored with it, `after` None for one to be learned again; with
            `{"test": {"images", "before", "after"}}` where `retest` could read the test split.
        superseded: stored groups that the new manifest no longer needs.
        digests: of the domain's splits.
        tasks: the domains of its group: itself, unless several were learned together.
    """

    run: RunFolder
    task: str
    stage: int
    manifest: int
    dependents: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[GroupRef] = field(default_factory=list)
    digests: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    before: int = 0

    def finish(self, erase: bool) -> dict[str, Any]:
        """Note it in the journal; with `erase` also remove what is stored of the domain."""
        before = disk_bytes(self.run)
        with self.run.lock():
            removed = erase_files(self) if erase else []
            self.run.journal.append(
                "forgotten",
                stage=self.stage,
                task=self.task,
                tasks=self.tasks,
                manifest=self.manifest,
                dependents=self.dependents,
                erased=erase,
                removed=removed,
            )
        after = disk_bytes(self.run)
        return {
            "dependents": self.dependents,
            "erased": removed,
            "bytes": {"before": before, "after": after},
        }


def forget_task(uri: str, task: str, serving: ServingSettings) -> Forgetting:
    """Store the model without a domain; publish its manifest, then call `finish`.

    Raises:
        UserError: the domain is not learned.
        LockedError: somebody writes to the run.
        Refused: a dependent cannot be mixed anew.
    """
    run = RunFolder(uri)
    run.read()
    with run.lock():
        latest = run.models.latest()
        refs = {ref.name: ref for ref in latest.groups} if latest else {}
        stored = [ref for ref in run.groups.list() if ref.name == task]
        for ref in refs.values():
            together = [part["name"] for part in task_cards(_card(run, ref))]
            if task in together and len(together) > 1:
                raise UserError(
                    f"task={task}: was learned in one group with {', '.join(together)}; only the"
                    f" whole group can be forgotten: task={ref.name}"
                )
        if not latest or not (task in refs or stored):
            known = ", ".join(refs) or "none"
            raise UserError(f"task={task}: is not learned; learned are: {known}")
        gone = refs.pop(task, None) or stored[-1]
        parts = task_cards(_card(run, gone))
        digests = tuple(digest for part in parts for digest in part["digests"].values())
        cards = {name: _card(run, ref) for name, ref in refs.items()}
        whose = {part["name"] for part in task_cards(_card(run, gone))}
        losing = [
            name
            for name, card in cards.items()
            if any(neighbour["task"] in whose for neighbour in card["neighbours"])
        ]
        plan = Forgetting(run, task, gone.stage, 0, superseded=[gone], digests=digests)
        plan.tasks, plan.before = tuple(sorted(whose)), latest.version
        plan.superseded += [refs[name] for name in losing]
        if losing and serving.dependents == "remix" and len(whose) > 1:
            raise UserError(
                f"task={task}: {', '.join(losing)} borrow from a group of several domains; give"
                " serving.dependents=retrain"
            )
        if losing and serving.dependents == "remix":
            refs |= _remix(run, serving, task, [*refs.values(), gone], losing, plan)
        for name in losing if serving.dependents == "retrain" else ():
            refs.pop(name)
            plan.dependents.append({"task": name, "rule": "retrain", "before": None, "after": None})
            run.journal.append("dropped", stage=cards[name]["stage"], task=name, reason=task)
        plan.manifest = run.models.publish(refs.values(), again=True)
        return plan


def _remix(
    run: RunFolder,
    serving: ServingSettings,
    task: str,
    refs: list[GroupRef],
    losing: list[str],
    plan: Forgetting,
) -> dict[str, GroupRef]:
    """Store each dependent once more, without the neighbour's share."""
    model = ServedModel(run.uri, serving, "cpu", follow=False)
    library = Library(run, model.backbone)
    method = build_method(model.backbone, model.settings)
    before = build_method(model.backbone, model.settings)
    old: dict[str, LearnedTask] = {}
    tensors = {}
    for ref in _by_stage(refs):
        books = library.get(ref)
        old |= {book.name: book for book in books}
        before.install(ref.name, books[0].tensors)
        if ref.name != task:
            tensors[ref.name] = method.without(books[0].tensors, task)
            method.install(ref.name, tensors[ref.name])
    nobody = model.current.identifier
    snapshot = Snapshot(NOTHING, old, method, nobody, nobody, 0.0)
    was = Snapshot(NOTHING, old, before, nobody, nobody, 0.0)
    found = {}
    for name in losing:
        learned = old[name]
        count = len(learned.probe.labels)
        first = _accuracy(probe_logits(was, learned, count), learned)
        card = dict(learned.card)
        classes = method.class_features(card["classes"], card["templates"], name)
        changed = LearnedTask(
            learned.ref, name, card, tensors[name], learned.signature, learned.probe,
            classes.detach(), learned.frozen_CF,
        )  # fmt: skip
        logits = probe_logits(snapshot, changed, count)
        if not np.isfinite(logits).all():
            raise Refused(f"'{name}' without '{task}': its logits are not finite")
        card["neighbours"] = [n for n in card["neighbours"] if n["task"] != task]
        card["remixed"] = {"sha256": learned.ref.sha256}
        files = {file: run.groups.read(learned.ref, file) for file in run.groups.files(learned.ref)}
        probe = load(files[PROBE], PROBE)
        identity = load(files[IDENTITY], IDENTITY)
        files[GROUP] = dump(tensors[name])
        files[PROBE] = dump({**probe, "logits": logits})
        files[IDENTITY] = dump({**identity, "classes": classes.detach()})
        files[TASK] = json.dumps(card, sort_keys=True, indent=1).encode()
        found[name] = run.groups.write(learned.ref.stage, name, files, beside=True)
        run.journal.append(
            "remixed", stage=learned.ref.stage, task=name, sha256=found[name].sha256, without=task
        )
        plan.dependents.append(
            {
                "task": name,
                "rule": "remix",
                "before": first,
                "after": _accuracy(logits, learned),
                "change": float(np.abs(logits - learned.probe.logits).max()),
            }
        )
    return found


def _accuracy(logits: np.ndarray, task: LearnedTask) -> float:
    return 100.0 * float((logits.argmax(axis=1) == task.probe.labels).mean())


def _by_stage(refs: Iterable[GroupRef]) -> list[GroupRef]:
    return sorted(refs, key=lambda ref: ref.stage)


def erase_files(plan: Forgetting) -> list[str]:
    """Remove what the run holds of a domain; returns the names that are gone."""
    run, folder, task = plan.run, plan.run.folder, plan.task
    removed = []
    for ref in run.groups.list():
        if ref.name == task or ref in plan.superseded:
            run.groups.delete(ref)
            removed.append(f"groups/{ref.folder}")
    trees = [f"train/{plan.stage:03d}-{task}", f"evaluation/logits/{task}"]
    trees += [n for n in folder.list("evaluation/logits/") if _of(n, f"{task}-")]
    cached = "cache/images/"  # in the run folder unless `cluster.cache_dir` says otherwise
    for digest in plan.digests:
        trees += folder.list(f"{cached}{digest[:32]}")
    for name in trees:
        if folder.exists(name):
            folder.delete_tree(name)
            removed.append(name)
    files = [f"quarantine-{task}.parquet", f"identifier/traces/{plan.stage:03d}-{task}.json"]
    files += [n for n in folder.list("evaluation/features/") if _of(n, f"{task}-")]
    for other in folder.list("evaluation/logits/"):
        files += [n for n in folder.list(f"{other}/") if _of(n, f"{task}-")]
    for name in files:
        if folder.exists(name):
            folder.delete(name)
            removed.append(name)
    _erase_calls(folder, task)
    return sorted(removed)


def _erase_calls(folder: Folder, task: str) -> None:
    """Recorded calls about a domain among those of a later evaluation; the others keep theirs."""
    traces = folder.child("identifier/traces")
    for name in traces.list():
        calls = traces.read_json(name)
        kept = [None if call and call.get("task") == task else call for call in calls]
        if kept != calls:
            traces.write_json(name, kept)


def _of(name: str, start: str) -> bool:
    """Whether a file belongs to a domain: `<task>-<16 hex digits>...`, not a longer task's."""
    rest = name.rpartition("/")[2].removeprefix(start)
    return rest != name.rpartition("/")[2] and all(c in "0123456789abcdef" for c in rest[:16])


def disk_bytes(run: RunFolder) -> int | None:
    """Bytes of a local run folder; None elsewhere."""
    if run.folder.local is None:
        return None
    return sum(path.stat().st_size for path in run.folder.local.rglob("*") if path.is_file())


def _card(run: RunFolder, ref: GroupRef) -> dict[str, Any]:
    return dict(json.loads(run.groups.read(ref, TASK)))

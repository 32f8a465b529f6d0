"""Forget a domain: a manifest without it, dependents mixed anew, and on request its erasure.

A group borrows from earlier ones with weights of its own. Where a dependent loses a neighbour, its
experts stay and the neighbour's share is dropped (`serving.dependents=remix`), or the group is left
out until `jobs/sequence.py` learns it again without that neighbour (`retrain`). Either way a
dependent's function changes, and what it scores on its stored images is measured before and after.
A group that nobody borrows from leaves all other functions as they are, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.lifecycle.erase import disk_bytes, erase_files
from archipelago.pipeline.lifecycle.remix import remix
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.settings import ServingSettings
from archipelago.pipeline.store import GroupRef, RunFolder


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

    def finish(self, erase: bool, again: bool = False) -> dict[str, Any]:
        """Note it in the journal; with `erase` also remove what is stored of the domain.

        With `again` the run's next start learns the domain anew.
        """
        before = disk_bytes(self.run)
        with self.run.lock():
            removed = []
            if erase:
                removed = erase_files(
                    self.run, self.task, self.stage, self.superseded, self.digests
                )
            self.run.journal.append(
                "forgotten",
                stage=self.stage,
                task=self.task,
                tasks=self.tasks,
                manifest=self.manifest,
                dependents=self.dependents,
                erased=erase,
                again=again,
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
            together = [part["name"] for part in read_card(run, ref)["tasks"]]
            if task in together and len(together) > 1:
                raise UserError(
                    f"task={task}: was learned in one group with {', '.join(together)}; only the"
                    f" whole group can be forgotten: task={ref.name}"
                )
        if not latest or not (task in refs or stored):
            known = ", ".join(refs) or "none"
            raise UserError(f"task={task}: is not learned; learned are: {known}")
        gone = refs.pop(task, None) or stored[-1]
        parts = read_card(run, gone)["tasks"]
        digests = tuple(digest for part in parts for digest in part["digests"].values())
        cards = {name: read_card(run, ref) for name, ref in refs.items()}
        whose = {part["name"] for part in parts}
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
            mixed = remix(run, task, [*refs.values(), gone], losing)
            for name, (ref, change) in mixed.items():
                refs[name] = ref
                plan.dependents.append({"task": name, "rule": "remix", **change})
        for name in losing if serving.dependents == "retrain" else ():
            refs.pop(name)
            plan.dependents.append({"task": name, "rule": "retrain", "before": None, "after": None})
            run.journal.append("dropped", stage=cards[name]["stage"], task=name, reason=task)
        plan.manifest = run.models.publish(refs.values(), again=True)
        return plan

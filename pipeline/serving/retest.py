"""What forgetting changed: logits on stored images, and dependents' accuracy on their test split.

A group that lost a neighbour is measured before and after on all test images of its own domain,
with the domain given: identification does not change by a remix, the function does.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import IntegrityError, UserError
from pipeline.evaluation.engine import Engine, EngineSpec
from pipeline.model.kernels import Kernels
from pipeline.serving.canary import probe_logits
from pipeline.serving.forget import Forgetting
from pipeline.serving.library import TASK
from pipeline.serving.model import ServedModel
from pipeline.serving.pointer import Refused
from pipeline.serving.snapshot import Snapshot
from pipeline.settings import ServingSettings, Settings
from pipeline.store import GroupRef, RunFolder
from pipeline.streams import ImageTable, PreparedDomain, open_stream, prepare

log = logging.getLogger(__name__)


def retest(plan: Forgetting, settings: Settings, cache_dir: str) -> str | None:
    """Put accuracies on the test split into `plan.dependents`; call it before `plan.finish`.

    Each dependent that was mixed anew gets `"test": {"images", "before", "after"}`, percent of all
    its test images. Decoded images are taken from the cache where they are in it.

    Args:
        plan: what was decided.
        settings: of the run, with its `run_dir`.
        cache_dir: where decoded images lie.

    Returns:
        One line that says why there are none, None where there was nothing to say.
    """
    mixed = [item for item in plan.dependents if item["rule"] == "remix"]
    if not mixed:
        return None
    run = plan.run
    latest = run.models.read(plan.manifest).groups
    names = [item["task"] for item in mixed]
    old = [ref for ref in latest if ref.name not in names] + plan.superseded
    try:
        cards = {ref.name: _card(run, ref) for ref in latest if ref.name in names}
        domains = _read(run, settings, names, cache_dir)
        for domain in domains:
            if domain.digests["test"] != cards[domain.name]["digests"]["test"]:
                return f"the test images of '{domain.name}' are not those of the run any more"
        before = _accuracies(run, settings, old, domains, cards)
        after = _accuracies(run, settings, latest, domains, cards)
    except (UserError, IntegrityError, OSError) as error:
        return f"the stream cannot be read ({str(error).splitlines()[0]})"
    counts = {domain.name: domain.counts["test"] for domain in domains}
    for item in mixed:
        name = item["task"]
        item["test"] = {"images": counts[name], "before": before[name], "after": after[name]}
    return None


def logit_changes(plan: Forgetting, serving: ServingSettings) -> dict[str, float]:
    """Largest change of a logit on the stored images of every domain that stays, by domain.

    0 where a domain's group did not borrow from the forgotten one: its function is the same, to the
    bit. Empty where the model cannot be loaded any more. Call it before `plan.finish`.
    """
    try:
        model = ServedModel(plan.run.uri, serving, "cpu", follow=False)
        old, new = model.snapshot(plan.before), model.snapshot(plan.manifest)
    except (Refused, IntegrityError, UserError, OSError) as error:  # no reason not to forget
        log.warning("logits before and after are not compared: %s", error)
        return {}
    with model.exact():
        return {
            name: float(np.abs(_probed(new, name) - _probed(old, name)).max())
            for name in new.tasks
            if name in old.tasks
        }


def _probed(snapshot: Snapshot, name: str) -> np.ndarray:
    task = snapshot.tasks[name]
    return probe_logits(snapshot, task, len(task.probe.images))


def _read(
    run: RunFolder, settings: Settings, names: Sequence[str], cache_dir: str
) -> list[PreparedDomain]:
    wanted = [d for d in open_stream(settings.stream, settings.seed) if d.name in names]
    missing = sorted(set(names) - {domain.name for domain in wanted})
    if missing:
        raise UserError(f"stream: {', '.join(missing)} is not in it any more")
    size = int(run.read()["backbone"]["image_size"])
    with run.lock():
        return prepare(
            wanted, size=size, run=run.uri, cache_dir=cache_dir,
            cache_gib=settings.cluster.cache_gib, cluster=settings.cluster,
            max_pixels=settings.stream.max_pixels, use_ray=False,
        )  # fmt: skip


def _accuracies(
    run: RunFolder,
    settings: Settings,
    refs: Sequence[GroupRef],
    domains: Sequence[PreparedDomain],
    cards: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Percent right of each domain's test images under its own function, of these groups."""
    engine = Engine(EngineSpec(settings, run.uri, Kernels(**run.read()["kernels"])))
    engine.install(sorted(refs, key=lambda ref: ref.stage))
    found = {}
    for domain in domains:
        card, table = cards[domain.name], domain.tables["test"]
        images = ImageTable.open(table)
        rows = np.arange(len(images))
        logits = engine.logits(table, rows, domain.name, card["classes"], card["templates"])
        found[domain.name] = 100.0 * float((logits.argmax(axis=1) == images.labels[rows]).mean())
    del engine  # one backbone in memory at a time
    gc.collect()
    return found


def _card(run: RunFolder, ref: GroupRef) -> dict[str, Any]:
    return dict(json.loads(run.groups.read(ref, TASK)))

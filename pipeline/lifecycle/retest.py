"""What forgetting changed: scores on stored images, and dependents' accuracy on their test split.

A group that lost a neighbour is measured before and after on all test images of its own domain,
with the domain given: identification does not change by a remix, the function does.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

import numpy as np

from archipelago.pipeline.errors import IntegrityError, Refused, UserError
from archipelago.pipeline.learned.runtime import Runtime
from archipelago.pipeline.lifecycle.forget import Forgetting
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.serving.canary import largest_change, probe_scores
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder
from archipelago.pipeline.streams import ImageTable, PreparedDomain, open_stream, prepare

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
        domains = _read(run, settings, names, cache_dir)
        for domain in domains:
            ref = next(ref for ref in latest if ref.name == domain.name)
            (stored,) = read_card(run, ref)["tasks"]
            if domain.digests["test"] != stored["digests"]["test"]:
                return f"the test images of '{domain.name}' are not those of the run any more"
        before = _accuracies(run, settings, old, domains)
        after = _accuracies(run, settings, latest, domains)
    except (UserError, IntegrityError, OSError) as error:
        return f"the stream cannot be read ({str(error).splitlines()[0]})"
    counts = {domain.name: domain.counts["test"] for domain in domains}
    for item in mixed:
        name = item["task"]
        item["test"] = {"images": counts[name], "before": before[name], "after": after[name]}
    return None


def score_changes(plan: Forgetting) -> dict[str, float]:
    """Largest change of a log-probability on the stored images of every domain that stays.

    0 where a domain's group did not borrow from the forgotten one: its function is the same, to the
    bit. Empty where the model cannot be loaded any more. Call it before `plan.finish`.
    """
    run = plan.run
    try:
        runtime = Runtime(run, "cpu")
        states = [
            runtime.state(run.models.read(version).groups)
            for version in (plan.before, plan.manifest)
        ]
    except (Refused, IntegrityError, UserError, ValueError, OSError) as error:
        log.warning("scores before and after are not compared: %s", error)
        return {}
    found: dict[str, float] = {}
    old, new = states
    with runtime.exact():
        for name, record in new.records.items():
            if name in old.records and record.probe is not None:
                count = len(record.probe.images)
                was, now = (
                    probe_scores(runtime, state, runtime.texts(state), name, count)
                    for state in (old, new)
                )
                found[name] = largest_change(now, was)
    return found


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
            wanted,
            size=size,
            run=run.uri,
            cache_dir=cache_dir,
            cache_gib=settings.cluster.cache_gib,
            cluster=settings.cluster,
            max_pixels=settings.stream.max_pixels,
            use_ray=False,
        )


def _accuracies(
    run: RunFolder, settings: Settings, refs: Sequence[GroupRef], domains: Sequence[PreparedDomain]
) -> dict[str, float]:
    """Percent right of each domain's test images under its own function, of these groups."""
    runtime = Runtime(run, "cpu")
    state = runtime.state(refs)
    texts, size, found = runtime.texts(state), settings.evaluation.batch_size, {}
    for domain in domains:
        table, record = ImageTable.open(domain.tables["test"]), state.records[domain.name]
        function, right = state.function(domain.name), 0
        assert function is not None
        for start in range(0, len(table), size):
            rows = np.arange(start, min(start + size, len(table)))
            view = runtime.view(state, table.images(rows), texts)
            scores = state.method.scores(view, function, record.listed)
            assert scores is not None
            right += int((scores.argmax(axis=1) == table.labels[rows]).sum())
        found[domain.name] = 100.0 * right / len(table)
    del runtime, state  # one backbone in memory at a time
    gc.collect()
    return found

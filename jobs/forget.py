"""Forget a learned domain: a model version without it, and on request nothing left of it.

    python jobs/forget.py run_dir=/data/runs/first task=pets
    python jobs/forget.py run_dir=/data/runs/first task=pets erase=true
    python jobs/forget.py run_dir=/data/runs/first task=pets serving.url=http://host:8000

Groups that borrowed from it are mixed anew and measured on their test split before and after, or
learned again by the next `jobs/sequence.py` (`serving.dependents`). Logits of the other domains are
compared with what they were. With `serving.url` a running endpoint does all this, and answers once
all its replicas have forgotten; else the run folder is changed, and what serves it follows in
seconds.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the run is locked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from archipelago.actors.arguments import cache_dir, load_settings
from archipelago.actors.exits import exit_codes
from archipelago.actors.logs import show_logs
from archipelago.actors.publishing import post_admin
from archipelago.pipeline.errors import EXIT_DONE, UserError
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.lifecycle.retest import retest, score_changes
from archipelago.pipeline.serving.model import run_settings
from archipelago.pipeline.serving.pointer import (
    Refused,
    newest_pointer,
    next_pointer,
    write_pointer,
)
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.erase import forget_tracked
from archipelago.pipeline.tracking.location import of_run


@exit_codes(
    "forget", "the domain is not forgotten; the same command tries again", mistakes=(Refused,)
)
def main(arguments: Sequence[str]) -> int:
    """Forget one domain; returns the exit code."""
    words, own = [], {"task": "", "erase": "false"}
    for word in arguments:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            words.append(word)
    if not own["task"]:
        raise UserError("task: say which domain to forget, task=NAME")
    if own["erase"] not in ("true", "false"):
        raise UserError(f"erase={own['erase']}: expected true or false")
    settings = load_settings(words)
    if not any(word.startswith("run_dir=") for word in words):
        raise UserError("run_dir: say of which run, run_dir=DIR")
    show_logs()
    told = forget(settings, own["task"], own["erase"] == "true")
    tell(told, own["task"], Console(highlight=False, soft_wrap=True))
    return EXIT_DONE


def forget(settings: Settings, task: str, erase: bool) -> dict[str, Any]:
    """Forget through the endpoint, or in the run folder."""
    assert settings.run_dir is not None
    run = RunFolder.open(settings.run_dir)
    if settings.serving.url:
        told = post_admin(settings.serving, "forget", {"task": task, "erase": erase, "test": True})
    else:
        tracking = of_run(run, settings.tracking)
        plan = forget_task(settings.run_dir, task, settings.serving)
        if newest_pointer(run).generation:
            write_pointer(run, next_pointer(run, plan.manifest), "forget")
        chosen = run_settings(run.read()).model_copy(update={"run_dir": settings.run_dir})
        why = retest(plan, chosen, cache_dir(chosen))
        changes = score_changes(plan)
        told = {"manifest": plan.manifest, "untested": why, "changes": changes}
        told |= plan.finish(erase)
        told["untracked"] = forget_tracked(run, tracking, task, erase)
    return told


def tell(told: dict[str, Any], task: str, console: Console) -> None:
    """What happened, in a few lines."""
    console.print(f"{task} is forgotten: manifest {told['manifest']} is the model without it")
    for item in told.get("dependents", ()):
        if item["rule"] == "remix":
            words = f"mixed anew, {item['before']:.1f} % -> {item['after']:.1f} % on its probes"
            if test := item.get("test"):
                words += f", {test['before']:.1f} % -> {test['after']:.1f} % on its test split"
                words += f" ({test['images']} images)"
        else:
            words = "left out until jobs/sequence.py learns it again"
        console.print(f"  {item['task']} borrowed from it: {words}")
    if changes := told.get("changes"):
        words = ", ".join(f"{name} {change:.3g}" for name, change in changes.items())
        console.print(f"  largest change of a log-probability on stored images: {words}")
    if told.get("untested"):
        console.print(f"  not measured on the test split: {told['untested']}")
    size = told.get("bytes") or {}
    if told.get("erased"):
        console.print(f"  erased: {', '.join(told['erased'])}")
        if told.get("untracked"):
            console.print(f"  erased in MLflow: {told['untracked']} entries and their files")
        if size.get("before") is not None:
            console.print(f"  on disk: {size['before']} -> {size['after']} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

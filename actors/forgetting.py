"""Forget a domain of a run, at its endpoint or in its folder, and tell what came of it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from archipelago.actors.arguments import cache_dir
from archipelago.actors.publishing import post_admin
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.lifecycle.retest import retest, score_changes
from archipelago.pipeline.serving.model import run_settings
from archipelago.pipeline.serving.pointer import (
    newest_pointer,
    next_pointer,
    write_pointer,
)
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.erase import forget_tracked
from archipelago.pipeline.tracking.location import of_run


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

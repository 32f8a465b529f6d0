"""From a job's words to settings that hold wherever it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archipelago.pipeline.config import load
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder
from archipelago.pipeline.streams import Domain


def load_settings(arguments: Sequence[str]) -> Settings:
    """Settings with an absolute `run_dir`.

    Raises:
        UserError: a mistake in the settings, or a submitted job without a place all nodes see.
    """
    settings = load(arguments)
    where = settings.run_dir
    if where is None:
        if is_submitted():
            absolute("run_dir", None)
        name = settings.stream.options.get("set") or settings.stream.reader
        where = f"runs/{name}-{settings.method.name}-{settings.seed}"
    where = absolute("run_dir", where)
    if is_submitted():
        _check_places(settings)
    return settings.model_copy(update={"run_dir": where})


def is_submitted() -> bool:
    """Whether this process is the driver of a job that was submitted to a Ray cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def absolute(key: str, where: str | None) -> str:
    """A place in full, whether path or URI; raises UserError where a submitted job cannot know."""
    if where is not None and "://" in where:
        return where
    path = None if where is None else Path(where).expanduser()
    if path is None or (is_submitted() and not path.is_absolute()):
        raise UserError(
            f"{key}={where}: a submitted job runs in a temporary copy of the working directory;"
            " give an absolute path or a URI that all nodes see"
        )
    return str(path.absolute())


def _check_places(settings: Settings) -> None:
    """Raises UserError for a path that a submitted job would look for in its copy of the code."""
    places = {
        "stream.root": settings.stream.root,
        "backbone.name": settings.backbone.name.partition("local-dir:")[2],
        "backbone.pretrained": settings.backbone.pretrained,
        "backbone.basis": settings.backbone.basis,
        "cluster.cache_dir": settings.cluster.cache_dir,
    }
    for key, place in places.items():
        if not place or "://" in place or Path(place).expanduser().is_absolute():
            continue
        if key == "backbone.pretrained" and not (os.sep in place or Path(place).exists()):
            continue  # a tag of open_clip's, as laion2b_s34b_b88k
        raise UserError(
            f"{key}={place}: is relative, and a submitted job runs in a temporary copy of the"
            " working directory; give an absolute path or a URI that all nodes see"
        )


def reference_methods(settings: Settings) -> list[str]:
    """Methods that are learned beside this one: as configured, and its baseline if it has one."""
    wanted = [*settings.evaluation.references, settings.method.options.get("baseline")]
    return list(dict.fromkeys(name for name in wanted if name and name != settings.method.name))


def reference_settings(arguments: Sequence[str], method: str, settings: Settings) -> Settings:
    """The same run by another method, with that method's own defaults and this run's experts."""
    kept = [a for a in arguments if not a.startswith(("method=", "method."))]
    other = load([*kept, f"method={method}"])
    changes: dict[str, Any] = {
        "run_dir": f"{settings.run_dir}/references/{method}",
        "evaluation": other.evaluation.model_copy(update={"references": []}),
        "experts": settings.experts,
    }
    if settings.evaluation.references_in == "driver":
        alone = other.cluster.train.model_copy(update={"num_workers": 0})
        changes["cluster"] = other.cluster.model_copy(update={"train": alone})
    return other.model_copy(update=changes)


def without_words(settings: Settings, domains: Sequence[Domain]) -> Settings:
    """Where all tasks are dense nobody reads class names: groups get no text experts.

    Raises:
        UserError: there would be no experts at all.
    """
    if any(domain.kind is None for domain in domains):
        return settings
    if settings.experts.image == "off":
        raise UserError(
            f"experts.image: off leaves nothing to learn for {domains[0].name!r}, a dense task"
        )
    experts = settings.experts.model_copy(update={"text": "off"})
    return settings.model_copy(update={"experts": experts})


def cache_dir(settings: Settings) -> str:
    """Where decoded images lie: as configured, else in the run folder."""
    assert settings.run_dir is not None
    return settings.cluster.cache_dir or Folder(settings.run_dir).child("cache").uri

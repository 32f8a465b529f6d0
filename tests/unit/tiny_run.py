"""A stream of colour domains on a random CLIP, learned in this process in a second a stage."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archipelago.pipeline.closedform import Basis, make_basis
from archipelago.pipeline.config import redacted
from archipelago.pipeline.identifiers import ScoreCache
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.learner import Learner
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.records.basis import keep_basis
from archipelago.pipeline.settings import ClusterSettings, Settings, StreamSettings
from archipelago.pipeline.store import RunFolder, names
from archipelago.pipeline.streams import PreparedDomain, open_stream, prepare
from archipelago.pipeline.training.launch import Trainer
from archipelago.pipeline.training.spec import Outcome, StageSpec
from tests.helpers import parquet_domain
from tests.unit.tiny_clip import images, save_local, settings

TASKS = ("apples", "boats", "cats", "doors")
WIDTH = 24  # compact features: 120 images are enough for so many


@dataclass(frozen=True)
class World:
    """Decoded domains and a saved CLIP, shared by the tests of a module."""

    domains: list[PreparedDomain]
    backbone: Path


def make_world(
    root: Path, tasks: tuple[str, ...] = TASKS, train: int = 11, classes: int = 4, **options: Any
) -> World:
    """Write, read and decode domains, `train` images of each class; save the CLIP."""
    for task in tasks:
        parquet_domain(root / "stream", task, classes=classes, train=train, test=6, size=32)
    domains = open_stream(
        StreamSettings(reader="parquet", root=str(root / "stream"), options=options), 0
    )
    prepared = prepare(
        domains,
        size=32,
        run=str(root),
        cache_dir=str(root / "cache"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )
    save_local(root / "clip")
    return World(prepared, root / "clip")


def run_settings(world: World, **parts: Any) -> Settings:
    """Settings of a run in this process; `parts` as in `tiny_clip.settings`."""
    fixed = {
        "backbone": {"name": f"local-dir:{world.backbone}"},
        "cluster": {"train": {"num_workers": 0}, "encode": {"num_workers": 0}},
        "training": {
            "steps": 8,
            "batch_size": 8,
            "warmup": 1,
            "views": 2,
            "learning_rate": 0.02,
            "validate_every": 2,
            "checkpoint_every": 3,
            "cache_gib": 0.1,
        },
        "evaluation": {"batch_size": 8},
        "experts": {"count": 3, "rank": 2},
    }
    merged = dict(fixed)
    for name, part in parts.items():
        merged[name] = fixed.get(name, {}) | part if isinstance(part, dict) else part
    return settings(**merged)


def stage_spec(world: World, run: Path, chosen: Settings, stage: int = 0) -> StageSpec:
    """What trains one stage without earlier groups."""
    return StageSpec(chosen, str(run), Kernels(), stage, (world.domains[stage],))


class Never(Trainer):
    """For runs that have all they need."""

    def __call__(self, spec: StageSpec) -> Outcome:
        """Fails."""
        raise AssertionError("trained again")


def make_learner(
    world: World,
    run: RunFolder,
    chosen: Settings,
    score_cache: ScoreCache | None = None,
    **options: Any,
) -> Learner:
    """A learner with an engine in this process and a basis of random images."""
    engine = Engine(EngineSpec(chosen, run.uri, Kernels()))
    if not run.folder.exists(names.BASIS):
        keep_basis(run, make_noise_basis(engine))
    return Learner(
        run,
        chosen,
        world.domains,
        engine,
        engine.basis,
        engine.backbone.logit_scale,
        Kernels(),
        score_cache,
        **options,
    )


def open_run(world: World, run: RunFolder, chosen: Settings, locked: bool = False) -> None:
    """Write `run.json`, as a session does: for tests of those who read it."""
    engine = Engine(EngineSpec(chosen, run.uri, Kernels()))
    with nullcontext() if locked else run.lock():
        if not run.folder.exists(names.BASIS):
            keep_basis(run, make_noise_basis(engine))
        tasks = [domain.name for domain in world.domains]
        facts = {
            "backbone": engine.facts() | {"basis": engine.basis.digest},
            "stream": {
                "tasks": tasks,
                "stages": [list(s.tasks) for s in stages_of(chosen, tasks)],
            },
            "kernels": Kernels().asdict(),
            "versions": {"torch": "2"},
        }
        run.open_run(redacted(chosen), facts)


def make_noise_basis(engine: Engine) -> Basis:
    """A basis of flat colours and noise, in place of many unrelated photographs."""
    noise = images(60).numpy().astype(np.int64)
    flat = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 3))
    pixels = np.concatenate([noise, noise[:, :1, :1] // 2 + flat // 2 + noise // 8])
    chosen = engine.settings.identifier
    seen = engine.raw(pixels.clip(0, 255).astype(np.uint8))
    return make_basis([seen], min(chosen.width, WIDTH), "noise", chosen.depths)


def learn_stream(learner: Learner, stages: int | None = None) -> list[dict[str, Any]]:
    """Restore, then learn and measure all stages that are pending; returns their records."""
    with learner.run.lock():
        pending = [s for s in learner.restore() if stages is None or s < stages]
        records = []
        for stage in pending:
            learner.learn(stage)
            learner.refine(stage)
            records.append(learner.evaluate(stage))
    return records


def group_hashes(run: RunFolder) -> dict[str, str]:
    """Task -> sha256 of its group."""
    return {ref.name: ref.sha256 for ref in run.groups.list()}

"""How long a comparison will take, from a few passes and steps on this machine.

An estimate, not a promise: data-parallel workers, and what else the machine does, are not in it.

Shapes: B images of a batch, L tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.methods import StageContext, build_method, method_class
from pipeline.model.backbone import load_backbone
from pipeline.model.kernels import Kernels
from pipeline.settings import Settings
from pipeline.streams import ImageTable, PreparedDomain
from pipeline.training.loop import planned_steps
from pipeline.training.objectives import text_activations

BATCH, TIMES = 32, 2


@dataclass(frozen=True)
class Speed:
    """Seconds that one method takes for each piece of work.

    Attributes:
        image: a pass of frozen CLIP over an image.
        step: an optimisation step; 0 where nothing is trained.
        share: of a pass that lies above the trunk, where functions differ.
    """

    image: float
    step: float
    share: float


def measure_speed(settings: Settings, kernels: Kernels, domain: PreparedDomain) -> Speed:
    """Time a method on one domain: frozen passes over its images, steps on activations of them."""
    backbone = load_backbone(settings.backbone, kernels.device, kernels)
    method = build_method(settings, None, backbone)
    table = ImageTable.open(domain.tables["train"])
    rows = np.resize(np.arange(len(table)), BATCH)
    images = backbone.normalise(table.images(np.unique(rows))[rows % len(np.unique(rows))])

    def look() -> None:
        with torch.no_grad(), backbone.kernels.exact():
            method.frozen_features(method.trunk(images))

    image = _seconds(look) / BATCH
    if not method.trains:
        return Speed(image, 0.0, 0.0)
    first = max(0, method.first_blocks[0])
    share = 1.0 - first / backbone.image.depth
    context = StageContext(0, domain.name, (), (domain.name,), (len(domain.classes),))
    adapter = method.adapter(context)
    with torch.no_grad():
        x_BLD = method.trunk(images)
    prompts = text_activations(
        backbone, method.first_blocks[1], list(domain.classes), list(domain.templates)[:1]
    )

    def step() -> None:
        with backbone.kernels.training():
            similar = adapter.image(x_BLD) @ adapter.text(*prompts[0]).T
        similar.float().square().sum().backward()

    return Speed(image, _seconds(step) * settings.training.batch_size / BATCH, share)


def _seconds(work: Callable[[], None]) -> float:
    """Mean of a few repetitions, after one to warm up."""
    work()
    clock = time.perf_counter()
    for _ in range(TIMES):
        work()
    return (time.perf_counter() - clock) / TIMES


def estimate(settings: Settings, speed: Speed, domains: Sequence[PreparedDomain]) -> float:
    """Seconds of one run: statistics, views of the trunk, steps, and measuring after each stage."""
    train = [int(d.counts["train"]) for d in domains]
    test = sum(int(d.counts["test"]) for d in domains)
    method = method_class(settings.method.name)
    seconds = speed.image * (sum(train) if method.learns else 0)
    if speed.step:
        trunk = speed.image * (1.0 - speed.share)
        seconds += sum(train) * settings.training.views * trunk
        seconds += sum(planned_steps(settings.training, count) for count in train) * speed.step
        # Shared weights change every test image's features at every stage, own ones each once.
        stages = 1 if method.joint else len(domains)
        seconds += test * speed.image * speed.share * (stages if method.continues else 1)
    return seconds


def in_words(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"

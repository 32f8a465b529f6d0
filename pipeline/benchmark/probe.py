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

from archipelago.pipeline.methods import StageContext, build_method, method_class
from archipelago.pipeline.model.backbone import load_backbone
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import Domain, PreparedDomain
from archipelago.pipeline.training.loop import planned_steps
from archipelago.pipeline.training.objectives import Prompts

BATCH = 16


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


class Probe:
    """Frozen CLIP with a few images of one domain, on which methods are timed one by one.

    Args:
        settings: name the backbone.
        kernels: those of the runs.
        domain: its class names are used.
        images_BSSC: some of its training images, uint8, of the backbone's size.
    """

    def __init__(
        self,
        settings: Settings,
        kernels: Kernels,
        domain: Domain | PreparedDomain,
        images_BSSC: np.ndarray,
    ) -> None:
        self.backbone = load_backbone(settings.backbone, kernels.device, kernels)
        self.domain = domain
        self.images = self.backbone.normalise(images_BSSC[:BATCH])

        def look() -> None:
            with torch.no_grad(), self.backbone.kernels.exact():
                self.backbone.encode_image(self.images)

        self.image = _seconds(look) / len(self.images)

    def speed(self, settings: Settings) -> Speed:
        """How fast a method is."""
        method = build_method(settings, None, self.backbone)
        if not method.trains:
            return Speed(self.image, 0.0, 0.0)
        name, classes = self.domain.name, list(self.domain.classes)
        adapter = method.adapter(StageContext(0, name, (), (name,), (len(classes),)))
        first_image, first_text = method.first_blocks
        with torch.no_grad():
            x_BLD = method.trunk(self.images)
        templates = list(self.domain.templates)[:1]
        (prompts,) = Prompts(self.backbone, first_text, classes, templates)

        def step() -> None:
            with self.backbone.kernels.training():
                similar = adapter.image(x_BLD) @ adapter.text(*prompts).T
            similar.float().square().sum().backward()

        seconds = _seconds(step) * settings.training.batch_size / len(self.images)
        return Speed(self.image, seconds, 1.0 - max(0, first_image) / self.backbone.image.depth)


def _seconds(work: Callable[[], None]) -> float:
    """Of one repetition, after one to warm up."""
    work()
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def estimate(
    settings: Settings, speed: Speed, train: Sequence[int], test: int, *, seen: bool = False
) -> float:
    """Seconds of one run: statistics, views of the trunk, steps, and measuring after each stage.

    Args:
        settings: the run's.
        speed: its method's.
        train: training images of each domain.
        test: test images of all.
        seen: whether frozen CLIP looked at the training images already, for another method.
    """
    method = method_class(settings.method.name)
    seconds = speed.image * (sum(train) if method.learns and not seen else 0)
    if speed.step:
        trunk = speed.image * (1.0 - speed.share)
        seconds += sum(train) * settings.training.views * trunk
        seconds += sum(planned_steps(settings.training, count) for count in train) * speed.step
        # Shared weights change every test image's features at every stage, own ones each once.
        stages = 1 if method.joint else len(train)
        seconds += test * speed.image * speed.share * (stages if method.continues else 1)
    return seconds

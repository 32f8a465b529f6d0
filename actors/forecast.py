"""What a run will take, before it begins: time from a short probe, memory, bytes, resources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from archipelago.actors.arguments import reference_methods
from archipelago.actors.checking import Checked
from archipelago.actors.cluster import uses_ray
from archipelago.pipeline.benchmark.probe import BATCH, Probe, estimate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.model.kernels import Kernels, resolve_device
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.streams import Domain
from archipelago.pipeline.streams.decode import BadImage, decode, fit

GIB = 2**30
DOUBLE, SINGLE, HALF = 8, 4, 2


@dataclass(frozen=True)
class Forecast:
    """What is expected of a run on this machine.

    Attributes:
        seconds: by method, the run's own first: decoding, passes, steps, measuring.
        images: that are decoded.
        decoded_bytes: of the cache of decoded images.
        cached_bytes: of trunk activations in memory while the largest domain trains; 0 where
            nothing is trained.
        domain_bytes: a stored domain's record, without a trained group.
        held: CPUs and GPUs that the run holds at once.
    """

    seconds: dict[str, float]
    images: int
    decoded_bytes: int
    cached_bytes: int
    domain_bytes: int
    held: dict[str, float]


def forecast(checked: Checked) -> Forecast:
    """Probe this machine with a few images of the stream's first domain.

    Raises:
        UserError: no image of it can be used.
    """
    settings = checked.settings
    first = checked.domains[0].domain
    kernels = Kernels(device=resolve_device(settings.cluster.device))
    train = [each.counts["train"] for each in checked.domains]
    test = sum(each.counts["test"] for each in checked.domains)
    size = _side(settings, kernels)
    images = np.stack(list(_images(first, settings, size)))
    probe = Probe(settings, kernels, first, images)
    names = [settings.method.name, *reference_methods(settings)]
    seconds = {}
    for name in names:
        chosen = _with_method(settings, name)
        seconds[name] = estimate(chosen, probe.speed(chosen), train, test)
    tower = probe.backbone.image
    per_image = tower.tokens * tower.width * HALF * settings.training.views
    trains = method_class(settings.method.name).trains
    budget = int(settings.training.cache_gib * GIB)
    classes = max(len(each.domain.classes) for each in checked.domains)
    embedding = int(probe.backbone.image.visual.output_dim)
    return Forecast(
        seconds,
        sum(train) + test,
        (sum(train) + test) * size * size * 3,
        min(budget, max(train) * per_image) if trains else 0,
        record_bytes(settings.identifier.width, classes, embedding),
        _held(settings),
    )


def record_bytes(width: int, classes: int, embedding: int, rows: int = 256) -> int:
    """Of one domain: scatter (one triangle), class means and texts, calibration rows."""
    triangle = width * (width + 1) // 2 * DOUBLE
    return (
        triangle
        + classes * (width * DOUBLE + embedding * SINGLE)
        + rows * HALF * (width + embedding)
    )


def _side(settings: Settings, kernels: Kernels) -> int:
    from archipelago.pipeline.model.backbone import load_backbone

    return int(load_backbone(settings.backbone, kernels.device, kernels).image_size)


def _images(domain: Domain, settings: Settings, size: int) -> Iterator[np.ndarray]:
    left = BATCH
    for chunk in domain.splits["train"].chunks:
        for row in chunk.rows():
            try:
                if isinstance(row.image, np.ndarray):
                    yield fit(row.image, size)
                else:
                    yield fit(decode(row.image, settings.stream.max_pixels), size)
                left -= 1
            except BadImage:
                continue
            if not left:
                return
    if left == BATCH:
        raise UserError(f"domain {domain.name!r}: no training image can be used")


def _with_method(settings: Settings, name: str) -> Settings:
    method: Any = settings.method.model_copy(update={"name": name})
    if name != settings.method.name:
        method = method.model_copy(update={"options": {}})
    return settings.model_copy(update={"method": method})


def _held(settings: Settings) -> dict[str, float]:
    cluster = settings.cluster
    if not uses_ray(settings):
        return {}
    workers = (cluster.train, cluster.encode)
    return {
        resource: sum(w.num_workers * getattr(w, key) for w in workers)
        + (getattr(cluster.data, key) if cluster.data.num_workers else 0.0)
        for resource, key in (("CPU", "num_cpus"), ("GPU", "num_gpus"))
    }

"""A finished run with its stream at hand, in this process: for jobs that measure it anew."""

from __future__ import annotations

from typing import Any, NamedTuple

from archipelago.actors.arguments import cache_dir
from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.learned.engine import Engine, EngineSpec
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.model.kernels import Kernels, resolve_device
from archipelago.pipeline.records.basis import read_basis
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import PreparedDomain, open_stream, prepare


class Finished(NamedTuple):
    """What measuring a run needs: its decoded domains, an encoder, the basis, CLIP's scale."""

    domains: list[PreparedDomain]
    engine: Engine
    basis: Basis
    scale: float


def open_finished(run: RunFolder, settings: Settings) -> Finished:
    """Open a run without Ray; what is decoded already is found in its cache.

    Args:
        run: locked by the caller.
        settings: the run's, maybe with changes.

    Raises:
        UserError: not a run, or its stream cannot be read.
    """
    kernels = Kernels.stored(run.read()["kernels"], resolve_device(settings.cluster.device))
    engine = Engine(EngineSpec(settings, run.uri, kernels))
    facts: dict[str, Any] = engine.facts()
    dense = method_class(settings.method.name).dense
    prepared = prepare(
        open_stream(settings.stream, settings.seed, dense),
        size=int(facts["image_size"]),
        run=run.uri,
        cache_dir=cache_dir(settings),
        cache_gib=settings.cluster.cache_gib,
        cluster=settings.cluster,
        max_pixels=settings.stream.max_pixels,
        use_ray=False,
    )
    return Finished(prepared, engine, read_basis(run), float(facts["scale"]))

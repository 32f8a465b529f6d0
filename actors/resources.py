"""What runs share while they work: Ray, the lock, signals, decoded images, encoders.

A run and its reference methods are ordinary runs (`actors/session.py`) on the same resources.
"""

from __future__ import annotations

import contextlib
import logging
import time
from types import TracebackType

import ray

from archipelago.actors.arguments import cache_dir
from archipelago.actors.cluster import connect, uses_ray
from archipelago.actors.encoders import EncoderPool
from archipelago.actors.identify import IdentifierPool, in_pool
from archipelago.actors.logs import show_logs
from archipelago.actors.preflight import check_batch, check_resources
from archipelago.actors.stopping import Signals
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.basis import find_basis
from archipelago.pipeline.identifiers.scorer import Scorer, check_driver
from archipelago.pipeline.learned.passed import FrozenPasses
from archipelago.pipeline.methods import method_class, method_options
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import Domain, PreparedDomain, open_stream, prepare
from archipelago.pipeline.training.launch import Trainer

log = logging.getLogger("archipelago")


def looks(settings: Settings) -> bool:
    """Whether a run needs a multimodal model."""
    multimodal = isinstance(settings.identifier, MultimodalSettings)
    return multimodal and method_class(settings.method.name).identifies()


class Resources:
    """Held from the first check to the end, whatever ends it; a context manager.

    Attributes:
        run: the folder that is locked; references lie inside it.
        signals: that ask all of it to stop.
        domains: of the stream, after `__enter__`.
        pool: encoders.
        trainer: of stages, with workers that stay.
        scorer: the multimodal model, in this process or in a pool of replicas; None where no
            identifier looks at images.
    """

    domains: list[Domain]
    pool: EncoderPool
    trainer: Trainer
    scorer: Scorer | None = None

    def __init__(self, settings: Settings, passed: FrozenPasses | None = None) -> None:
        """Take the settings of the run that the resources are for.

        Args:
            settings: with `run_dir`.
            passed: what frozen CLIP gave for other runs on the same images.

        Raises:
            UserError: an option that the method does not have.
        """
        method_options(settings.method)
        assert settings.run_dir is not None
        self.settings, self._passed = settings, passed
        self.run = RunFolder(settings.run_dir)
        self.signals = Signals()
        self._stack = contextlib.ExitStack()
        self._kernels: Kernels | None = None
        self._prepared: list[PreparedDomain] | None = None

    def __enter__(self) -> Resources:
        """Check the settings, lock the folder, connect."""
        try:
            self._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _open(self) -> None:
        settings = self.settings
        show_logs()
        check_batch(settings)
        find_basis(settings.backbone)
        if looks(settings):
            check_driver(settings.multimodal)
        dense = method_class(settings.method.name).dense
        self.domains = open_stream(settings.stream, settings.seed, dense)
        self._stack.enter_context(self.run.lock(wait_s=0))
        self._stack.enter_context(self.signals.listening())
        pooled = looks(settings) and in_pool(settings)
        if connect(settings, pooled):
            self._stack.callback(ray.shutdown)
            self.signals.listen()  # Ray has put its own handler there
        if uses_ray(settings, pooled):
            check_resources(settings.cluster, pooled)
        self.pool = self._stack.enter_context(EncoderPool(settings, self._passed))
        self.trainer = self._stack.enter_context(Trainer())
        if looks(settings):
            self.scorer = self._stack.enter_context(IdentifierPool(settings)).scorer

    def kernels(self, stored: dict[str, str] | None) -> Kernels:
        """The choice that a run recorded, else that of the first one here, else what suits the
        machine; on the kind of device that there is now.
        """
        if stored:
            now = self.pool.kernels(self.settings).device
            if now.partition(":")[0] != stored["device"].partition(":")[0]:
                log.warning(
                    "begun on %s, goes on on %s: what comes is no longer the same to the bit",
                    stored["device"],
                    now,
                )
            found = Kernels.stored(stored, now)
        else:
            found = self._kernels or self.pool.kernels(self.settings)
        self._kernels = self._kernels or found
        return found

    def prepared(self, size: int) -> list[PreparedDomain]:
        """The stream decoded to `size`, once for all runs."""
        if self._prepared is None:
            self._prepared = self._prepare(size)
        return self._prepared

    def _prepare(self, size: int) -> list[PreparedDomain]:
        settings, clock = self.settings, time.perf_counter()
        prepared = prepare(
            self.domains,
            size=size,
            run=self.run.uri,
            cache_dir=cache_dir(settings),
            cache_gib=settings.cluster.cache_gib,
            cluster=settings.cluster,
            max_pixels=settings.stream.max_pixels,
            use_ray=settings.cluster.data.num_workers > 0,
        )
        seconds = (time.perf_counter() - clock) / len(prepared)
        for domain in prepared:
            self.run.journal.append(
                "prepared",
                task=domain.name,
                counts=dict(domain.counts),
                quarantined=domain.quarantined,
                digests=dict(domain.digests),
                seconds=seconds,
            )
            if domain.quarantined:
                log.warning(
                    "%s: %d rows cannot be used, see quarantine-%s.parquet in the run folder",
                    domain.name,
                    domain.quarantined,
                    domain.name,
                )
        return prepared

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of everything.

        Raises:
            Stopped: a signal came, whatever Ray made of the exception.
        """
        self._stack.close()
        self.signals.insist(error)

"""Tracking beside a running job: syncs happen on a thread of their own, never in the job's way."""

from __future__ import annotations

import logging
import threading

from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.tracking.location import locate
from archipelago.pipeline.tracking.sync import sync

log = logging.getLogger(__name__)


class Tracker:
    """Keeps MLflow up to date with `run` while a job writes it.

    Raises UserError for settings that can never work, before anything is learned.
    """

    def __init__(self, run: RunFolder, settings: TrackingSettings):
        self.location = locate(run, settings) if settings.enabled else None
        self._run, self._settings = run, settings
        self._told: set[str] = set()
        self._due, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None

    def poke(self) -> None:
        """The run folder has news. Returns at once; news that come during a sync share the next."""
        if self.location is None:
            return
        self._due.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def close(self) -> bool:
        """Wait for a sync under way, sync once more, and say whether MLflow holds everything."""
        self._closing = True
        if self._thread is not None:
            self._due.set()
            self._thread.join()
        return sync(self._run, self._settings, self._told)

    def _work(self) -> None:
        while not self._closing:
            self._due.wait()
            self._due.clear()
            if not self._closing:
                try:
                    sync(self._run, self._settings, self._told)
                except Exception:
                    log.exception("tracking: this sync failed; the next one starts afresh")

"""MLflow lineage: a projection of the run folder that can be late, repeated or rebuilt.

`sync(run, settings)` brings MLflow up to date; a `Tracker` does so beside a running job; `locate`
says where the tracking data lies and how to look at it. MLflow is imported by the first sync.
"""

from __future__ import annotations

from archipelago.pipeline.tracking.location import Location, locate
from archipelago.pipeline.tracking.sync import sync
from archipelago.pipeline.tracking.tracker import Tracker

__all__ = ["Location", "Tracker", "locate", "sync"]

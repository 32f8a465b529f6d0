"""What the protocol's statistics extension counts, of one ingress since it started.

All calls that show something to the model count, whichever path they came by. A request is one
execution here, also where replicas answer several in one pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archipelago.actors.http.observe import Seen

PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        """Once more."""
        self.count += 1
        self.ns += max(0, round(1e6 * milliseconds))


@dataclass
class Statistics:
    """Sums over requests; for one thread."""

    inferences: int = 0
    last: int = 0  # milliseconds since the epoch
    parts: dict[str, Duration] = field(default_factory=lambda: {name: Duration() for name in PARTS})

    def count(self, status: int, milliseconds: float, seen: Seen | None) -> None:
        """One request that was for the model, answered or refused."""
        if seen is None or status >= 400:
            self.parts["fail"].add(milliseconds)
            return
        self.last = int(1000 * time.time())
        self.inferences += seen.images + seen.texts
        model = min(sum(seen.reply.milliseconds.values()), seen.waited)
        spent = {
            "success": milliseconds,
            "queue": seen.waited - model,
            "compute_input": seen.decode,
            "compute_infer": model,
            "compute_output": milliseconds - seen.decode - seen.waited,
        }
        for name, value in spent.items():
            self.parts[name].add(value)

    def report(self, name: str, version: str) -> dict[str, Any]:
        """In the extension's words; sums are over all versions that answered so far."""
        stated: Mapping[str, Duration] = self.parts
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.inferences,
            "execution_count": self.parts["success"].count,
            "inference_stats": {
                part: {"count": spent.count, "ns": spent.ns} for part, spent in stated.items()
            },
            "batch_stats": [],
        }

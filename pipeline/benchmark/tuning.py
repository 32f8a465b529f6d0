"""Learning rates on one small budget each: every method that trains, on the first two domains.

A trial learns both, one after the other, from three quarters of their training images, and is
judged by its accuracy on the rest at the end: a rate that learns one domain best may forget it with
the next. Test images are never seen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from archipelago.pipeline.benchmark.probe import Speed, estimate
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import build_method, method_options
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder

log = logging.getLogger("archipelago")

FILE = "tuned.json"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a method's configured rate
STEPS = 60  # of a trial's stage, or as many as a stage has
DOMAINS = 2  # the first ones of the stream
SHARE = 0.25  # of the training images, to judge by


@dataclass(frozen=True)
class Tuner:
    """Finds rates and keeps them in a comparison's folder, so that each is found once.

    Attributes:
        folder: of the comparison.
        trial: accuracy in percent that a run with these settings ends with, on what it is judged
            by; raises UserError where it diverges.
    """

    folder: Folder
    trial: Callable[[Settings], float]

    def rate(self, stream: str, label: str, settings: Settings, domains: Sequence[str]) -> float:
        """The peak learning rate of a method on a stream; of equals, that nearest to the usual one.

        Args:
            stream: by name or folder, as the comparison calls it.
            label: of the method.
            settings: a run of it.
            domains: that a trial learns, by name.

        Raises:
            UserError: every rate diverges.
        """
        found = self.folder.read_json(FILE) if self.folder.exists(FILE) else {}
        facts = {"domains": list(domains), "tried": {}}
        mine = found.setdefault(stream, {}).setdefault(label, facts)
        usual = rate_of(settings)
        for rate in (usual * factor for factor in FACTORS):
            key = f"{rate:.3g}"
            if key in mine["tried"]:
                continue
            mine["tried"][key] = self._tried(label, with_rate(settings, rate), key)
            self.folder.write_json(FILE, found)
        right = {key: figure for key, figure in mine["tried"].items() if figure is not None}
        if not right:
            lowest = min(mine["tried"], key=float)
            raise UserError(
                f"tune=on: {label} diverges at every learning rate from {lowest} up; give a lower"
                " one, as method(learning_rate=1e-5)"
            )
        best = max(right, key=lambda key: (right[key], -abs(math.log(float(key) / usual))))
        if mine.get("rate") != float(best):
            tried = ", ".join(f"{key} ({right[key]:.1f} %)" for key in right)
            log.info("%s: learning rate %s of %s", label, best, tried)
            mine["rate"] = float(best)
            self.folder.write_json(FILE, found)
        return float(best)

    def _tried(self, label: str, settings: Settings, key: str) -> float | None:
        """What a trial ends with; None where it diverges."""
        try:
            return self.trial(settings)
        except UserError as error:
            log.info("%s at learning rate %s: %s", label, key, error)
            return None


def trains(settings: Settings) -> bool:
    """Whether a method has a rate to tune, with the options that it has."""
    return build_method(settings).trains


def tuning_s(settings: Settings, speed: Speed, train: Sequence[int]) -> float:
    """Seconds that finding a method's rate will take, all trials.

    Args:
        settings: a run of it.
        speed: the method's.
        train: training images of each domain of the stream.
    """
    kept = [int(count * (1.0 - SHARE)) for count in train[:DOMAINS]]
    judged = sum(train[:DOMAINS]) - sum(kept)
    trial = with_rate(settings, rate_of(settings))
    return len(FACTORS) * estimate(trial, speed, kept, judged, seen=True)


def rate_of(settings: Settings) -> float:
    """The configured peak rate of a method."""
    options: Any = method_options(settings.method)
    return float(options.learning_rate or settings.training.learning_rate)


def with_rate(settings: Settings, rate: float, steps: int | None = STEPS) -> Settings:
    """The same run at another peak rate.

    Args:
        settings: of the run.
        rate: peak learning rate.
        steps: at most so many a stage; None = as configured.
    """
    options = {**settings.method.options, "learning_rate": rate}
    method = settings.method.model_copy(update={"options": options})
    training = settings.training
    if steps is not None:
        training = training.model_copy(update={"steps": min(training.steps, steps)})
    return settings.model_copy(update={"method": method, "training": training})

"""Learning rates on one small budget each: every method that trains, on a first domain's fold.

The fold is the held-out part of training images (`stream.held_out`); test images are never seen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.methods import build_method, method_options
from archipelago.pipeline.model.kernels import Kernels
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder
from archipelago.pipeline.streams import PreparedDomain
from archipelago.pipeline.training.launch import Trainer
from archipelago.pipeline.training.spec import StageSpec

log = logging.getLogger("archipelago")

FILE = "tuned.json"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of a method's configured rate
STEPS = 60  # of a trial, or as many as a stage has


@dataclass(frozen=True)
class Tuner:
    """Finds rates and keeps them in a comparison's folder, so that each is found once.

    Attributes:
        folder: of the comparison.
        kernels: of its runs.
        threads: of torch for a training worker.
        trainer: of stages.
    """

    folder: Folder
    kernels: Kernels
    threads: int
    trainer: Trainer

    def rate(self, stream: str, label: str, settings: Settings, domain: PreparedDomain) -> float:
        """The peak learning rate of a method on a stream.

        Args:
            stream: by name or folder, as the comparison calls it.
            label: of the method.
            settings: a run of it.
            domain: decoded, the one to try it on.

        Raises:
            UserError: every rate diverges.
        """
        found = self.folder.read_json(FILE) if self.folder.exists(FILE) else {}
        mine = found.setdefault(stream, {}).setdefault(label, {"domain": domain.name, "tried": {}})
        usual = rate_of(settings)
        for rate in (usual * factor for factor in FACTORS):
            key = f"{rate:.3g}"
            if key in mine["tried"]:
                continue
            mine["tried"][key] = self._loss(label, with_rate(settings, rate), key, domain)
            self.folder.write_json(FILE, found)
        losses = {key: loss for key, loss in mine["tried"].items() if loss is not None}
        if not losses:
            lowest = min(mine["tried"], key=float)
            raise UserError(
                f"tune=on: {label} diverges at every learning rate from {lowest} up; give a lower"
                " one, as method(learning_rate=1e-5)"
            )
        best = min(losses, key=lambda key: (losses[key], float(key)))
        if mine.get("rate") != float(best):
            log.info("%s: learning rate %s of %s, by the held-out fold of %s", label, best,
                     ", ".join(mine["tried"]), domain.name)  # fmt: skip
            mine["rate"] = float(best)
            self.folder.write_json(FILE, found)
        return float(best)

    def _loss(
        self, label: str, settings: Settings, key: str, domain: PreparedDomain
    ) -> float | None:
        """Cross-entropy of the held-out fold at its best; None where training diverges."""
        run = self.folder.child("tuning").uri
        spec = StageSpec(settings, run, self.kernels, 0, (domain,), threads=self.threads)
        try:
            facts = self.trainer(spec).facts
        except UserError as error:
            log.info("%s at learning rate %s: %s", label, key, error)
            return None
        finally:
            self.folder.delete_tree("tuning")  # of no use once its figure is known
        return float(facts["held_out_loss"])


def trains(settings: Settings) -> bool:
    """Whether a method has a rate to tune, with the options that it has."""
    return build_method(settings).trains


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

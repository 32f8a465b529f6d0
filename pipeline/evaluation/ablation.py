"""What each part of a method is worth: a finished run answered anew with one switch changed.

Records hold everything that answers follow from, so nothing is learned and, but for functions that
never ran, no image is encoded. Whether a trained group is kept was decided while it was learned;
here groups can only be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from archipelago.pipeline.closedform import Basis
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation import metrics
from archipelago.pipeline.evaluation.evaluator import Evaluator, identifier_record
from archipelago.pipeline.evaluation.protocol import SETTINGS
from archipelago.pipeline.evaluation.views import Encoder
from archipelago.pipeline.identifiers import Identification
from archipelago.pipeline.learned.state import build_state
from archipelago.pipeline.methods import method_options
from archipelago.pipeline.records import GroupRecord
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import PreparedDomain

Changes = Mapping[str, Any]
VARIANTS: dict[str, Changes] = {
    "evidence of tasks alone": {"identifier.evidence": "E"},
    "evidence of classes alone": {"identifier.evidence": "J"},
    "novelty by distance alone": {"identifier.novelty": "distance"},
    "novelty by cosine alone": {"identifier.novelty": "cosine"},
    "the likeliest task alone": {"method.options.policy": "hard"},
    "heads without the group": {"method.options.group": "off"},
    "heads without CLIP": {"method.options.clip": False},
    "heads drawn to the identity": {"method.options.prior": "identity"},
    "kappa = 0": {"method.options.kappa": 0.0},
    "kappa = 1": {"method.options.kappa": 1.0},
    "debias = 0": {"method.options.debias": 0.0},
    "debias = 1": {"method.options.debias": 1.0},
    "joint = 0.5": {"method.options.joint": 0.5},
    "predicted = 0.3": {"method.options.predicted": 0.3},
    "cca = 0.3": {"method.options.cca": 0.3},
}
Images = list[np.ndarray | None]


@dataclass
class VariantResults:
    """One variant on all stages.

    Attributes:
        right: per setting and stage, per task whether each test image was answered right.
        acceptance: share of learned tasks' images taken for learned ones, percent, a stage.
        auroc: unseen against seen images, percent, a stage.
    """

    right: dict[str, list[Images]] = field(default_factory=dict)
    acceptance: list[float] = field(default_factory=list)
    auroc: list[float] = field(default_factory=list)

    def matrix(self, setting: str) -> np.ndarray:
        """Accuracies, stage by task, percent."""
        return np.array(
            [
                [np.nan if i is None else 100.0 * float(np.mean(i)) for i in row]
                for row in self.right[setting]
            ]
        )


class Ablation:
    """Variants of one finished run.

    Args:
        run: the run folder.
        settings: the run's.
        domains: decoded tasks in stream order.
        encoder: for features that are not stored yet.
        basis: of compact features.
        scale: `exp(logit_scale)` of the backbone.

    Raises:
        UserError: nothing is learned, or the method does not answer by records.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        domains: Sequence[PreparedDomain],
        encoder: Encoder,
        basis: Basis,
        scale: float,
    ) -> None:
        self.settings, self.basis, self.scale = settings, basis, scale
        self.evaluator = Evaluator(run, settings, domains, encoder, basis.width)
        refs = run.current_groups()
        encoder.install(refs)
        self.groups = [GroupRecord.read(run, ref) for ref in refs]
        if not self.groups:
            raise UserError(f"run_dir={run.folder.shown()}: nothing is learned there yet")
        self.learned = {
            task.name: stage for stage, group in enumerate(self.groups) for task in group.tasks
        }

    def applies(self, changes: Changes) -> bool:
        """Whether the run's method has these switches, and not as they are."""
        options = method_options(self.settings.method).model_dump()
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            if section == "method.options" and options.get(name, value) == value:
                return False
            if section == "identifier" and getattr(self.settings.identifier, name) == value:
                return False
        return True

    def results(self, changes: Changes) -> VariantResults:
        """All stages with a change."""
        settings, found = _changed(self.settings, changes), VariantResults()
        for stage in range(len(self.groups)):
            known = self.groups[: stage + 1]
            state = build_state(known, settings, self.basis, scale=self.scale)
            self.evaluator.know(state)
            right: dict[str, Images] = {setting: [] for setting in SETTINGS}
            identified: dict[str, Identification] = {}
            outside: dict[str, np.ndarray] = {}
            for task in self.evaluator.domains:
                if state.identifier is not None:
                    identified[task] = state.identifier.identify(self.evaluator.evidence(task))
                measured = self.evaluator.measured(state, task, identified.get(task))
                for setting in SETTINGS:
                    right[setting].append(measured.right.get(setting))
                if measured.outside is not None:
                    outside[task] = measured.outside
            for setting, row in right.items():
                found.right.setdefault(setting, []).append(row)
            figures = identifier_record(identified, outside, state.learned)
            if figures is not None and figures["unseen_auroc"] is not None:
                found.acceptance.append(figures["seen_acceptance"])
                found.auroc.append(figures["unseen_auroc"])
        return found

    def row(self, title: str, found: VariantResults, base: VariantResults) -> dict[str, Any]:
        """Figures of a variant, with what it gains over the run as it is, by paired images."""
        samples, seed = self.settings.evaluation.bootstrap, self.settings.seed
        figures: dict[str, Any] = {"variant": title, "settings": {}}
        for setting in SETTINGS:
            matrix = found.matrix(setting)
            if np.isnan(matrix).all():
                figures["settings"][setting] = None
                continue
            last = metrics.row_gain(found.right[setting][-1], base.right[setting][-1])
            every = metrics.row_gain(
                metrics.mean_over_stages(found.right[setting]),
                metrics.mean_over_stages(base.right[setting]),
            )
            figures["settings"][setting] = {
                "transfer": _defined(metrics.transfer(matrix, self._columns()).mean),
                "average": _defined(metrics.average(matrix).mean),
                "last": _defined(metrics.last(matrix).mean),
                "last_gain": metrics.paired_bootstrap(last, samples, seed)._asdict(),
                "average_gain": metrics.paired_bootstrap(every, samples, seed)._asdict(),
            }
        for name in ("acceptance", "auroc"):
            values = getattr(found, name)
            figures[name] = float(np.mean(values)) if values else None
        return figures

    def _columns(self) -> list[int]:
        """The stage in which each task was learned; past the last where it was not."""
        return [self.learned.get(task, len(self.groups)) for task in self.evaluator.domains]


def _changed(settings: Settings, changes: Changes) -> Settings:
    tree = settings.model_dump(mode="json")
    for key, value in changes.items():
        at: Any = tree
        *sections, name = key.split(".")
        for section in sections:
            at = at[section]
        at[name] = value
    return Settings.model_validate(tree)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

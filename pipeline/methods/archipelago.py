"""archipelago: closed form first, a trained group where it pays, soft answers (method 7).

Each task gets a discriminant on compact features of frozen CLIP (7.3), at once and for ever. Then
an expert group is trained on its images alone, with class vectors of its own (7.4); it is kept if
head and group together explain held-out images better than the head, by two standard errors. An
image is answered by every task in proportion to its probability, and by CLIP in proportion to that
of being of none (7.5). Nothing borrows from anything, so the order of learning changes nothing.

Shapes: B images, C classes of a task, m held-out images, F embedding, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from archipelago.pipeline.closedform import (
    Basis,
    CalibrationRows,
    Head,
    KnownTask,
    Sums,
    fit_head,
)
from archipelago.pipeline.closedform.cca import Correlations
from archipelago.pipeline.closedform.joint import Joint
from archipelago.pipeline.closedform.knowledge import MOST_ROWS
from archipelago.pipeline.closedform.parts import parted
from archipelago.pipeline.closedform.predicted import PredictedMeans
from archipelago.pipeline.closedform.taskset import TaskSet
from archipelago.pipeline.closedform.unlearned import Unlearned, retold
from archipelago.pipeline.methods.adapter import Adapter, StageContext
from archipelago.pipeline.methods.base import (
    Fitted,
    MethodOptions,
    StageData,
    log_softmax,
    register,
)
from archipelago.pipeline.methods.blend import Blend, fit_blend
from archipelago.pipeline.methods.closed import ClosedForm
from archipelago.pipeline.methods.means import class_means
from archipelago.pipeline.methods.trge import GroupAdapter, Trge
from archipelago.pipeline.methods.view import Function, View
from archipelago.pipeline.model.backbone import Backbone
from archipelago.pipeline.records import ClassList, GroupRecord, Probe, TaskRecord
from archipelago.pipeline.settings import Settings


class ArchipelagoOptions(MethodOptions):
    """Each part is a switch.

    Attributes:
        group: train one for each task: `auto` keeps it where it pays, `on` always, `off` never.
        policy: `posterior` = every task by its probability; `hard` = the likeliest alone.
        clip: CLIP's scores of a task's classes may help its head.
        prior: what a head's covariance shrinks towards: the `background`'s, or `identity`.
        kappa: weight of CLIP's scores in deciding that an image is new.
        debias: share of the mean image that is taken out of CLIP's scores; 0 = frozen CLIP.
        errors: standard errors by which a group must gain to be kept.
        learning_rate: peak rate of a group.
        joint: share of joint class scores in the answer, where classes of several tasks are asked.
        predicted: weight of class means predicted from text, for classes that nobody learned.
        cca: weight of canonical correlations of images and texts, likewise.
    """

    group: Literal["auto", "on", "off"] = "auto"
    policy: Literal["posterior", "hard"] = "posterior"
    clip: bool = True
    prior: Literal["background", "identity"] = "background"
    kappa: float = Field(0.5, ge=0.0)
    debias: float = Field(0.5, ge=0.0, le=1.0)
    errors: float = Field(2.0, ge=0.0)
    learning_rate: float | None = Field(0.01, gt=0.0)
    joint: float = Field(0.0, ge=0.0, le=1.0)
    predicted: float = Field(0.0, ge=0.0, le=1.0)
    cca: float = Field(0.0, ge=0.0, le=1.0)


class IslandAdapter(GroupAdapter):
    """Image experts and a vector for each class, in place of the text encoder's features."""

    reads_names = False

    def __init__(self, method: Archipelago, context: StageContext, group: Any) -> None:
        super().__init__(method.backbone, group, method.first_blocks, context.task)
        width = int(method.backbone.image.visual.output_dim)
        self.vectors = nn.Parameter(torch.zeros(context.sizes[0], width))

    def text(self, x_CLD: Tensor, position_C: Tensor, task: int = 0) -> Tensor:
        """The class vectors (C, F), normalised, whatever the prompts."""
        return F.normalize(self.vectors, dim=-1)

    def export(self) -> dict[str, Tensor]:
        """Experts, routers and class vectors."""
        return super().export() | {"vectors": self.vectors.detach().cpu().contiguous()}


@register
class Archipelago(ClosedForm, Trge):
    """See the module's text."""

    name = "archipelago"
    Options = ArchipelagoOptions
    fuses = False
    borrows = False
    several = False

    def __init__(
        self,
        settings: Settings,
        basis: Basis | None = None,
        backbone: Backbone | None = None,
        scale: float = 1.0,
    ) -> None:
        experts = settings.experts.model_copy(update={"text": "off"})
        super().__init__(settings.model_copy(update={"experts": experts}), basis, backbone, scale)
        self.policy = self.options.policy
        self.kappa, self.debias = self.options.kappa, self.options.debias
        self.joint_share = self.options.joint
        self._joint: Joint | None = None
        self._told: list[tuple[float, Unlearned]] = []
        self.trains = self.refines = self.options.group != "off"

    # -- the head ----------------------------------------------------------------------------

    def fit_head(self, record: TaskRecord) -> Head:
        """The discriminant of a task (7.3)."""
        assert record.sums is not None and record.rows is not None
        return self._discriminant(record.sums, record.rows, self.row_scores(record))

    def _discriminant(self, sums: Sums, rows: CalibrationRows, clip_RC: np.ndarray) -> Head:
        assert self.basis is not None
        return fit_head(
            sums, rows, clip_RC, self.basis, prior=self.options.prior, clip=self.options.clip
        )

    # -- the group ---------------------------------------------------------------------------

    def refine(self, stage: StageData, earlier: Sequence[GroupRecord]) -> Fitted:
        """Train a group; what is not worth keeping is dropped, and what was found is noted."""
        (record,) = stage.tasks
        assert record.sums is not None
        if not _can_judge(record):
            facts = {**record.facts, "group": {"kept": False, "gain": None, "fold": None}}
            return Fitted(tasks={record.name: {"facts": facts}})
        fitted = stage.train()
        rows, logits = fitted.held[record.name]
        blend, found = self._judged(stage, record, rows, logits)
        keep = self.options.group == "on" or (
            len(rows) > 1 and found["gain"][0] > self.options.errors * found["gain"][1]
        )
        found |= {"kept": keep, "blend": blend.asdict()}
        fields = fitted.tasks[record.name]
        temperature = fields.pop("temperature")  # both sides have one of their own
        fields["facts"] = {**record.facts, "group": found}
        group_alone = fields.pop("probe")
        if keep:
            scores = self._probed(
                stage, record, fitted.probed[record.name], group_alone, temperature, blend
            )
            fields["probe"] = replace(group_alone, scores=scores.astype(np.float32))
        else:
            del fields["own_CF"]
            fitted.tensors, fitted.parameters, fitted.experts = {}, 0, None
        return fitted

    def _probed(
        self,
        stage: StageData,
        record: TaskRecord,
        rows: np.ndarray,
        group: Probe,
        temperature: float,
        blend: Blend,
    ) -> np.ndarray:
        """What head and group together say of the canary's images, (n, C)."""
        assert record.text_CF is not None
        compact, frozen, _ = stage.look(record.name, rows)
        group_nC = log_softmax(temperature * group.scores)
        clip_nC = self.scale * self.debiased(frozen) @ record.text_CF.astype(np.float64).T
        return blend(self.head(record).log_probabilities(compact, clip_nC), group_nC)

    def _judged(
        self, stage: StageData, record: TaskRecord, rows: np.ndarray, logits: np.ndarray
    ) -> tuple[Blend, dict[str, Any]]:
        """How head and group are blended, and what that gains on the held-out fold.

        The head is fitted without these images, which the group did not train on either. Where
        images belong together, the record's own head is: they are not in the sums, and what they
        set of it, a few numbers, is as little as each side's temperature below.
        """
        assert record.sums is not None and record.rows is not None and record.text_CF is not None
        if not len(rows):
            return Blend(), {"gain": [0.0, 0.0], "images": 0}
        compact, frozen, labels = stage.look(record.name, rows)
        head = self.head(record)
        if record.rows.counted.any():
            fold = Sums.of(compact, labels, len(record.classes))
            left = ~np.isin(record.rows.places, rows)
            head = self._discriminant(
                parted(record.sums, fold), record.rows.where(left), self.row_scores(record)[left]
            )
        clip_mC = self.scale * self.debiased(frozen) @ record.text_CF.astype(np.float64).T
        alone = head.log_probabilities(compact, clip_mC)
        known = np.isfinite(alone[np.arange(len(labels)), labels])
        alone, group, labels = alone[known], log_softmax(logits[known]), labels[known]
        if not len(labels):
            return Blend(), {"gain": [0.0, 0.0], "images": 0}
        blend = fit_blend(alone, group, labels)
        both = blend(alone, group)
        at = np.arange(len(labels))
        gains = both[at, labels] - alone[at, labels]
        error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
        return blend, {
            "gain": [float(gains.mean()), error],
            "images": len(labels),
            "fold": {
                name: 100.0 * float((p.argmax(axis=1) == labels).mean())
                for name, p in (("head", alone), ("group", group), ("both", both))
            },
        }

    def adapter(self, context: StageContext) -> IslandAdapter:
        """A fresh group with class vectors, its initialisation fixed by (seed, task)."""
        return IslandAdapter(self, context, super().adapter(context).group).to(self.backbone.device)

    @torch.no_grad()
    def begin(self, adapter: Adapter, objectives: Sequence[Any], world: int) -> None:
        """Class vectors start at the class means of frozen CLIP's features."""
        assert isinstance(adapter, IslandAdapter)
        (task,) = objectives
        vectors = class_means(self, task, adapter.vectors.data, world)
        adapter.vectors.data.copy_(vectors)

    # -- answers -----------------------------------------------------------------------------

    def know(self, records: Mapping[str, TaskRecord]) -> None:
        """Also what several tasks say together, where a switch asks for it."""
        super().know(records)
        self._joint, self._told = None, []
        kinds = ((self.options.predicted, PredictedMeans), (self.options.cca, Correlations))
        if not records or not (self.joint_share or any(weight for weight, _ in kinds)):
            return
        tasks, texts = {}, {}
        for name, record in records.items():
            assert record.sums is not None and record.rows is not None
            assert record.text_CF is not None
            tasks[name], texts[name] = KnownTask(record.sums, record.rows), record.text_CF
        assert self.basis is not None
        together = TaskSet(tasks, self.basis, self.settings.identifier.shrinkage, MOST_ROWS)
        self._joint = Joint(together)
        self._told = [(w, Unlearned(together, texts, kind)) for w, kind in kinds if w]

    def outside_scores(
        self, view: View, text_CF: np.ndarray, unlearned_C: np.ndarray
    ) -> np.ndarray:
        """CLIP's; among classes that nobody learned also what learned ones tell of texts (7.6)."""
        scores = self.clip_scores(view, text_CF)
        if self._told and unlearned_C.any():
            ours = scores[:, unlearned_C]
            for weight, model in self._told:
                told = model.scores(view.compact, text_CF[unlearned_C])
                if told is not None:
                    ours = retold(ours, weight * told)
            scores[:, unlearned_C] = ours
        return scores

    def joint_scores(self, view: View) -> dict[str, np.ndarray] | None:
        """`q J_c` by task; None where nothing says how sharp they are."""
        return None if self._joint is None else self._joint.scores(view.compact)

    def function(self, task: str | None, learned: Sequence[str]) -> Function | None:
        """The task's head, with its group where one was kept."""
        if task is None or task not in learned:
            return None
        return Function(task, task if self._kept(task) else None)

    def _kept(self, task: str) -> bool:
        if self.options.group == "off":
            return False
        record = self.records.get(task)
        return record is not None and bool(record.facts.get("group", {}).get("kept"))

    def scores(self, view: View, function: Function, listed: ClassList) -> np.ndarray | None:
        """Head and group in equal parts, log-linearly; the head alone where no group runs."""
        alone = super().scores(view, function, listed)
        if alone is None or function.weights is None:
            return alone
        return self.blend(function.task)(alone, self._group_scores(view, function))

    def contributions(self, function: Function) -> dict[str, float]:
        """The task alone: nothing is borrowed."""
        return {function.task: 1.0}

    def blend(self, task: str) -> Blend:
        """How head and group of a task are put together, where a group was kept."""
        return Blend(**self.records[task].facts["group"]["blend"])

    def _group_scores(self, view: View, function: Function) -> np.ndarray:
        own = self.records[function.task].own_CF
        assert own is not None
        return log_softmax(self.scale * view.features(function) @ own.T)

    def parts(self, view: View, function: Function, listed: ClassList) -> dict[str, np.ndarray]:
        """Head, group and both; the head as it would be without calibration."""
        found = super().parts(view, function, listed)
        if function.weights is not None:
            found["group"] = self._group_scores(view, function)
            found["both"] = self.blend(function.task)(found["head"], found["group"])
        return found


def _can_judge(record: TaskRecord) -> bool:
    """Whether an image can be held out to judge a group by: one that is not in the sums, or one of
    a class with two."""
    assert record.sums is not None and record.rows is not None
    return not record.rows.counted.all() or bool(
        len(record.rows) and (record.sums.counts >= 2).any()
    )
